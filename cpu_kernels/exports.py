"""What an object contains: the decoder for int8 and float activations, or single kernels for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

from numba import types

from cpu_kernels.attention import make_attention_kernels
from cpu_kernels.crosscompile import Export
from cpu_kernels.decoder import make_common_kernels, make_forward, make_linear_layer
from cpu_kernels.elementwise import make_exponential, make_row_kernels
from cpu_kernels.isa.base import Isa
from cpu_kernels.isa_ops import IsaOps
from cpu_kernels.threads import make_step_functions
from cpu_kernels.vectors import float_of_bits, load, store


def decoder_exports(isa: Isa, bits: Sequence[int]) -> list[Export]:
    """step, serve and stop for both kinds of activations and weights of the given bits."""
    ops = IsaOps(isa)
    common = make_common_kernels(ops)
    exports = []
    for activations in ("int8", "float"):
        step, serve, stop = make_step_functions(common.threads, make_forward(ops, common, activations, bits))
        exports += [
            Export(f"edgeawq_step_{activations}", step, 1),
            Export(f"edgeawq_serve_{activations}", serve, 2),
        ]
    return [*exports, Export("edgeawq_stop", stop, 1)]


def linear_exports(isa: Isa, bits: Sequence[int]) -> list[Export]:
    """linear_w{bits}a8 and gated_…: all in which instruction sets of one layout differ, and quicker to build."""
    ops = IsaOps(isa)
    return [export for width in bits for export in _layer_exports(ops, width, "int8", "a8")]


def _layer_exports(ops: IsaOps, bits: int, activations: str, short: str) -> list[Export]:
    linear, gated = make_linear_layer(ops, bits, activations)
    return [Export(f"linear_w{bits}{short}", linear.py_func, 9), Export(f"gated_w{bits}{short}", gated.py_func, 8)]


def kernel_exports(isa: Isa, bits: Sequence[int]) -> list[Export]:
    """Single kernels under their own names: linear_w{bits}a{8,32}, gated_…, rms_norm, quantize_row, exponential, …"""
    ops = IsaOps(isa)
    rows = make_row_kernels(ops)
    attention = make_attention_kernels("f16")
    rms_norm, quantize_row = rows.rms_norm, rows.quantize_row
    write_keys_values, attend, merge = attention.write_keys_values, attention.attend, attention.merge
    exponential, f32, lanes = make_exponential(ops.lanes), ops.f32, ops.lanes
    exports = []
    for width in bits:
        for activations, short in (("int8", "a8"), ("float", "a32")):
            exports += _layer_exports(ops, width, activations, short)

    def rms_norm_row(x, weight, width, eps_bits, out):
        rms_norm(x, weight, width, float_of_bits(types.int32(eps_bits)), out)

    def quantize(x, width, group_size, out):
        quantize_row(x, width, group_size, out)

    def exponentials(x, count, out):
        for offset in range(0, 4 * count, 4 * lanes):
            store(out + offset, exponential(load(f32, x + offset)))

    def write_cache(context, layer, token, first_head, last_head):
        write_keys_values(context, layer, token, first_head, last_head)

    def attend_chunks(context, layer, kv_head, first, last, first_chunk, last_chunk, slot, slot_per_token, scratch):
        attend(context, layer, kv_head, first, last, first_chunk, last_chunk, slot, slot_per_token, scratch)

    def merge_slots(context, first_slot, slots, out):
        merge(context, first_slot, slots, out)

    return [
        *exports,
        Export("rms_norm", rms_norm_row, 5),
        Export("quantize_row", quantize, 4),
        Export("exponential", exponentials, 3),
        Export("write_keys_values", write_cache, 5),
        Export("attend", attend_chunks, 10),
        Export("merge", merge_slots, 4),
    ]
