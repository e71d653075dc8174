"""NEON: Armv8.0 (Cortex-A72, Raspberry Pi 4), and with the dot product (Cortex-A76, Raspberry Pi 5; A78AE, Orin).

| instruction | meaning | latency/throughput (Cortex-A72 / A76 software optimization guides) |
|---|---|---|
| smull, smlal v.8h, v.8b, v.8b | s8 × s8 → s16, (accumulated) | 4 / 1 per cycle; accumulator forwarded |
| sadalp v.4s, v.8h | neighbouring s16 pairs added to s32 | 4–5 / 1 |
| sdot v.4s, v.16b, v.16b (dot product) | s32 += Σ of 4 s8 × s8 | 2–3 / 2 per cycle |

Overflow without the dot product: a chain of 8 products of a 4-bit weight in an s16 lane is at most 15240.
An 8-bit weight is taken as w - 128: one product is at most 128 · 127 = 16256, widened after every step.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from cpu_kernels.cpu_flags import REQUIRED_CPU_FLAGS
from cpu_kernels.isa.base import Isa, join, mean_dot, pause_arm, splat_constant, sum_neighbours, take, vector
from cpu_kernels.vectors import call

I8X16 = vector(8, 16)
I8X32 = vector(8, 32)
I16X32 = vector(16, 32)
I32X4 = vector(32, 4)
I32X8 = vector(32, 8)


def _products(builder: ir.IRBuilder, w: Any, x: Any) -> Any:
    # LLVM selects smull and smlal (and smull2, smlal2) for a product of two sign-extended bytes
    return builder.mul(builder.sext(w, I16X32), builder.sext(x, I16X32))


def _multiply_nibbles(builder: ir.IRBuilder, chain: Any, w: Any, x: Any) -> Any:
    return builder.add(chain, _products(builder, w, x))


def _fold(builder: ir.IRBuilder, total: Any, products: Any) -> Any:
    """total i32 [8] + Σ over each row's 4 products i16 [32]."""
    parts = []
    for start in range(0, 32, 8):
        eight = take(builder, products, list(range(start, start + 8)))
        parts.append(call(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", I32X4, eight))
    sums = [call(builder, "llvm.aarch64.neon.addp.v4i32", I32X4, parts[half], parts[half + 1]) for half in (0, 2)]
    return builder.add(total, join(builder, sums[0], sums[1]))


def _mean_fold(builder: ir.IRBuilder, total: Any, products: Any) -> Any:
    return builder.add(total, sum_neighbours(builder, products, I32X8, 4))


def _signed(builder: ir.IRBuilder, w: Any) -> Any:
    return builder.xor(w, splat_constant(I8X32, -128))


def _multiply_bytes(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    return _fold(builder, total, _products(builder, _signed(builder, w), x))


def _mean_multiply_bytes(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    return mean_dot(builder, total, w, x, offset=128)


NEON = Isa(
    name="neon",
    machine="aarch64",
    lanes=8,
    layout="neon",
    cpu_flags=REQUIRED_CPU_FLAGS["neon"],
    chain="i16",
    chain_lanes=32,
    byte_offset=128,
    emit_multiply_nibbles=_multiply_nibbles,
    emit_widen=_fold,
    emit_multiply_bytes=_multiply_bytes,
    emit_pause=pause_arm,
    mean_multiply_nibbles=_multiply_nibbles,
    mean_widen=_mean_fold,
    mean_multiply_bytes=_mean_multiply_bytes,
)


def _dot(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    halves = []
    for half in (0, 1):
        four = take(builder, total, list(range(4 * half, 4 * half + 4)))
        weights = take(builder, w, list(range(16 * half, 16 * half + 16)))
        activations = take(builder, x, list(range(16 * half, 16 * half + 16)))
        halves.append(call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", I32X4, four, weights, activations))
    return join(builder, halves[0], halves[1])


def _dot_bytes(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    return _dot(builder, total, _signed(builder, w), x)


def _mean_dot(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    return mean_dot(builder, total, w, x, offset=0)


def _add(builder: ir.IRBuilder, total: Any, chain: Any) -> Any:
    return builder.add(total, chain)


NEON_DOTPROD = Isa(
    name="neon_dotprod",
    machine="aarch64",
    lanes=8,
    layout="neon",
    cpu_flags=REQUIRED_CPU_FLAGS["neon_dotprod"],
    chain="i32",
    chain_lanes=8,
    byte_offset=128,
    emit_multiply_nibbles=_dot,
    emit_widen=_add,
    emit_multiply_bytes=_dot_bytes,
    emit_pause=pause_arm,
    mean_multiply_nibbles=_mean_dot,
    mean_widen=_add,
    mean_multiply_bytes=_mean_multiply_bytes,
)
