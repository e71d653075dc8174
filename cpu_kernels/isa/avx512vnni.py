"""AVX-512 with VNNI (Ice Lake, Sapphire Rapids, Zen 4 and later): 16 rows in one register.

| instruction | meaning | latency/throughput (Ice Lake, uops.info) |
|---|---|---|
| vpdpbusd zmm | s32 += Σ of 4 u8 × s8, no saturation | 5 / 1 |

Overflow: one step adds at most 4 · 255 · 127 = 129540 to a 32-bit sum, which takes more than 16 000 steps to fill.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from cpu_kernels.cpu_flags import REQUIRED_CPU_FLAGS
from cpu_kernels.isa.base import Isa, mean_dot, pause_x86, same, spread8, twice, vector
from cpu_kernels.vectors import call

I32X16 = vector(32, 16)


def _dot(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    return call(builder, "llvm.x86.avx512.vpdpbusd.512", I32X16, total, w, x)


def _mean_dot(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    return mean_dot(builder, total, w, x, offset=0)


def _add(builder: ir.IRBuilder, total: Any, chain: Any) -> Any:
    return builder.add(total, chain)


AVX512VNNI = Isa(
    name="avx512vnni",
    machine="x86_64",
    lanes=16,
    layout="avx512",
    cpu_flags=REQUIRED_CPU_FLAGS["avx512vnni"],
    chain="i32",
    chain_lanes=16,
    total_lanes=16,
    tokens_at_once=4,
    chain_from_total=False,
    byte_offset=0,
    emit_spread8=spread8,
    emit_multiply_nibbles=_dot,
    emit_widen=_add,
    emit_fold=same,
    emit_multiply_bytes=twice(_dot),
    emit_pause=pause_x86,
    mean_multiply_nibbles=_mean_dot,
    mean_widen=_add,
    mean_fold=same,
    mean_multiply_bytes=twice(_mean_dot),
)
