"""NEON: Armv8.0 (Cortex-A72, Raspberry Pi 4), and with the dot product (Cortex-A76, Raspberry Pi 5; A78AE, Orin).

| instruction | meaning | latency/throughput (Cortex-A72 / A76 software optimization guides) |
|---|---|---|
| smull, smlal v.8h, v.8b, v.8b | s8 × s8 → s16, (accumulated) | 4 / 1 per cycle; accumulator forwarded |
| smull2, smlal2 | the same of the upper halves | the same: no `ext` is needed where both operands are full |
| ld2r v.4s, v.4s | two 32-bit words, each to every lane | 8 / 1 |
| sadalp v.4s, v.8h | neighbouring s16 pairs added to s32 | 4–5 / 1 |
| sdot v.4s, v.16b, v.16b (dot product) | s32 += Σ of 4 s8 × s8 | 2–3 / 2 per cycle |
| sdot v.4s, v.16b, v.4b[lane] | the same with 4 bytes of the second for all lanes: no broadcast | the same |

Overflow without the dot product: a chain of 8 products of a 4-bit weight in an s16 lane is at most 15240.
An 8-bit weight is taken as w - 128: two products are at most 2 · 128 · 127 = 32512, widened after 8 columns.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from cpu_kernels.cpu_flags import REQUIRED_CPU_FLAGS
from cpu_kernels.isa.base import (
    Isa,
    join,
    mean_dot,
    pause_arm,
    same,
    splat_constant,
    sum_neighbours,
    take,
    twice,
    vector,
)
from cpu_kernels.vectors import call, splat_value

I8X16 = vector(8, 16)
I8X32 = vector(8, 32)
I16X32 = vector(16, 32)
I32X2 = vector(32, 2)
I32X4 = vector(32, 4)
I32X8 = vector(32, 8)
I32X16 = vector(32, 16)


def _products(builder: ir.IRBuilder, w: Any, x: Any) -> Any:
    # LLVM selects smull and smlal (and smull2, smlal2) for a product of two sign-extended bytes
    return builder.mul(builder.sext(w, I16X32), builder.sext(x, I16X32))


def _multiply_nibbles(builder: ir.IRBuilder, chain: Any, w: Any, x: Any) -> Any:
    return builder.add(chain, _products(builder, w, x))


def _spread8_ld2r(builder: ir.IRBuilder, address: Any, _kind: ir.VectorType) -> tuple[Any, Any]:
    # LLVM sees through a broadcast, and then multiplies only lower halves, with an `ext` for each upper one. Not this.
    pointer = builder.inttoptr(address, ir.IntType(32).as_pointer())
    pair = call(builder, "llvm.aarch64.neon.ld2r.v4i32.p0", ir.LiteralStructType([I32X4, I32X4]), pointer)
    halves = [builder.bitcast(builder.extract_value(pair, half), I8X16) for half in (0, 1)]
    return join(builder, halves[0], halves[0]), join(builder, halves[1], halves[1])


def _widen(builder: ir.IRBuilder, total: Any, chain: Any) -> Any:
    """total i32 [16] + neighbouring pairs of i16 [32]: sadalp."""
    parts = []
    for start in range(0, 32, 8):
        eight = take(builder, chain, list(range(start, start + 8)))
        pairs = call(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", I32X4, eight)
        parts.append(builder.add(take(builder, total, list(range(start // 2, start // 2 + 4))), pairs))
    return join(builder, join(builder, parts[0], parts[1]), join(builder, parts[2], parts[3]))


def _mean_widen(builder: ir.IRBuilder, total: Any, chain: Any) -> Any:
    return builder.add(total, sum_neighbours(builder, chain, I32X16, 2))


def _fold(builder: ir.IRBuilder, total: Any) -> Any:
    """Neighbouring pairs of i32 [16]: addp."""
    parts = [take(builder, total, list(range(start, start + 4))) for start in range(0, 16, 4)]
    sums = [call(builder, "llvm.aarch64.neon.addp.v4i32", I32X4, parts[half], parts[half + 1]) for half in (0, 2)]
    return join(builder, sums[0], sums[1])


def _mean_fold(builder: ir.IRBuilder, total: Any) -> Any:
    return sum_neighbours(builder, total, I32X8, 2)


def _signed(builder: ir.IRBuilder, w: Any) -> Any:
    return builder.xor(w, splat_constant(I8X32, -128))


def _multiply_bytes(builder: ir.IRBuilder, total: Any, w0: Any, w1: Any, x0: Any, x1: Any) -> Any:
    chain = _products(builder, _signed(builder, w0), x0)
    return _widen(builder, total, builder.add(chain, _products(builder, _signed(builder, w1), x1)))


def _mean_multiply_bytes(builder: ir.IRBuilder, total: Any, w0: Any, w1: Any, x0: Any, x1: Any) -> Any:
    for w, x in ((w0, x0), (w1, x1)):
        total = _mean_widen(builder, total, _products(builder, _signed(builder, w), x))
    return total


NEON = Isa(
    name="neon",
    machine="aarch64",
    lanes=8,
    layout="neon",
    cpu_flags=REQUIRED_CPU_FLAGS["neon"],
    chain="i16",
    chain_lanes=32,
    total_lanes=16,
    tokens_at_once=2,
    chain_from_total=False,
    byte_offset=128,
    emit_spread8=_spread8_ld2r,
    emit_multiply_nibbles=_multiply_nibbles,
    emit_widen=_widen,
    emit_fold=_fold,
    emit_multiply_bytes=_multiply_bytes,
    emit_pause=pause_arm,
    mean_multiply_nibbles=_multiply_nibbles,
    mean_widen=_mean_widen,
    mean_fold=_mean_fold,
    mean_multiply_bytes=_mean_multiply_bytes,
)


def _spread8_lanes(builder: ir.IRBuilder, address: Any, _kind: ir.VectorType) -> tuple[Any, Any]:
    # one load; LLVM puts the broadcast of a lane into the dot product
    words = builder.load(builder.inttoptr(address, I32X2.as_pointer()), align=1)
    lanes = [builder.extract_element(words, ir.IntType(32)(lane)) for lane in (0, 1)]
    halves = [builder.bitcast(splat_value(builder, I32X4, lane), I8X16) for lane in lanes]
    return join(builder, halves[0], halves[0]), join(builder, halves[1], halves[1])


def dot_halves(builder: ir.IRBuilder, instruction: str, total: Any, w: Any, x: Any) -> Any:
    """Two dot products, "sdot" or "usdot": total i32 [8], w and x i8 [32] → i32 [8]."""
    halves = []
    for half in (0, 1):
        four = take(builder, total, list(range(4 * half, 4 * half + 4)))
        weights = take(builder, w, list(range(16 * half, 16 * half + 16)))
        activations = take(builder, x, list(range(16 * half, 16 * half + 16)))
        halves.append(call(builder, f"llvm.aarch64.neon.{instruction}.v4i32.v16i8", I32X4, four, weights, activations))
    return join(builder, halves[0], halves[1])


def _dot(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    return dot_halves(builder, "sdot", total, w, x)


def _dot_bytes(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    return _dot(builder, total, _signed(builder, w), x)


def _mean_dot(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    return mean_dot(builder, total, w, x, offset=0)


def _mean_dot_bytes(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    return mean_dot(builder, total, w, x, offset=128)


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
    total_lanes=8,
    tokens_at_once=4,
    chain_from_total=True,
    byte_offset=128,
    emit_spread8=_spread8_lanes,
    emit_multiply_nibbles=_dot,
    emit_widen=_add,
    emit_fold=same,
    emit_multiply_bytes=twice(_dot_bytes),
    emit_pause=pause_arm,
    mean_multiply_nibbles=_mean_dot,
    mean_widen=_add,
    mean_fold=same,
    mean_multiply_bytes=twice(_mean_dot_bytes),
)
