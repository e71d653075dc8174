"""Which kernels take which weights and activations."""

from __future__ import annotations

from cpu_kernels.isa_ops import IsaOps, RecordKernels
from cpu_kernels.linear import make_float
from cpu_kernels.linear_float3 import make_float3
from cpu_kernels.linear_int8 import make_int8


def make_record_kernels(ops: IsaOps, bits: int, activations: str) -> RecordKernels:
    """Kernels for weights of `bits` 2, 3, 4 or 8 and activations "int8" or "float"."""
    if activations == "float":
        return make_float3(ops) if bits == 3 else make_float(ops, bits)
    return make_int8(ops, bits)
