"""NEON with the dot product and the int8 matrix product (FEAT_I8MM): Armv8.6, Armv9, some cores between.

| instruction | meaning | latency/throughput (Neoverse N2, LLVM's model) |
|---|---|---|
| sdot v.4s, v.16b, v.4b[lane] | s32 += Σ of 4 s8 × s8: nibbles, one activation row | 3 / 2 per cycle |
| usdot v.4s, v.16b, v.4b[lane] | s32 += Σ of 4 u8 × s8: 8-bit weights, one activation row | the same |
| usmmla v.4s, v.16b, v.16b | s32 2×2 += u8 2×8 · s8 8×2: two weight rows by two activation rows | the same |
| zip1, zip2 v.4s | four columns of two registers each become eight columns of two rows | 2 / 2 per cycle |
| uzp1, uzp2 v.4s | the same for activations, and sums back to one row each | the same |

Layout and one activation row are those of the dot product. With four rows `usmmla` does in one instruction what takes
`sdot` two. Weights of every width are taken as the unsigned bytes they are, so 8-bit ones need no offset.

Overflow: a step of 8 columns adds at most 8 · 255 · 127 = 259080 to a 32-bit sum, which takes 8289 steps, or 66312
columns, to fill; with 4-bit weights it is 8 · 15 · 127 = 15240 and 1.1 million columns. `usdot` adds half of that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llvmlite import ir

from cpu_kernels.cpu_flags import REQUIRED_CPU_FLAGS
from cpu_kernels.isa.base import join, mean_dot, mean_pairs, take, twice
from cpu_kernels.isa.neon import I32X4, NEON_DOTPROD, dot_halves
from cpu_kernels.vectors import call


def _dot_bytes(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    return dot_halves(builder, "usdot", total, w, x)


def _mean_dot_bytes(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    return mean_dot(builder, total, w, x, offset=0)


def _multiply_pairs(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    halves = []
    for half in (0, 1):
        four = take(builder, total, list(range(4 * half, 4 * half + 4)))
        weights = take(builder, w, list(range(16 * half, 16 * half + 16)))
        halves.append(call(builder, "llvm.aarch64.neon.usmmla.v4i32.v16i8", I32X4, four, weights, x))
    return join(builder, halves[0], halves[1])


NEON_I8MM = replace(
    NEON_DOTPROD,
    name="neon_i8mm",
    cpu_flags=REQUIRED_CPU_FLAGS["neon_i8mm"],
    byte_offset=0,
    emit_multiply_bytes=twice(_dot_bytes),
    mean_multiply_bytes=twice(_mean_dot_bytes),
    emit_multiply_pairs=_multiply_pairs,
    mean_multiply_pairs=mean_pairs,
)
