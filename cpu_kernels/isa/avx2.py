"""AVX2 + FMA + F16C (Haswell, Zen and later), and the same with AVX-VNNI.

| instruction | meaning | latency/throughput (Zen 3, uops.info) |
|---|---|---|
| vpmaddubsw ymm | u8 × s8, neighbouring pairs summed to s16, saturating | 3 / 0.5 |
| vpmaddwd ymm | s16 × s16, neighbouring pairs summed to s32 | 3 / 0.5 |
| vpabsb, vpsignb ymm | |w|, and x with the sign of w | 1 / 0.5 |
| vpdpbusd ymm (AVX-VNNI) | s32 += Σ of 4 u8 × s8 | 4–5 / 0.5–1 |

Overflow: a 4-bit weight is at most 15 and an activation at most 127 in size, so one vpmaddubsw lane holds at most
2 · 15 · 127 = 3810; a chain of 8 (32 columns) stays at 30480 < 32767. An 8-bit weight is taken as w - 128, which is in
-128 … 127: 2 · 128 · 127 = 32512 < 32767, widened to 32 bits after every instruction.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from cpu_kernels.cpu_flags import REQUIRED_CPU_FLAGS
from cpu_kernels.isa.base import Isa, mean_dot, pause_x86, same, splat_constant, spread8, sum_neighbours, twice, vector
from cpu_kernels.vectors import call

I8X32 = vector(8, 32)
I16X16 = vector(16, 16)
I32X8 = vector(32, 8)


def _multiply_nibbles(builder: ir.IRBuilder, chain: Any, w: Any, x: Any) -> Any:
    pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", I16X16, w, x)
    return builder.add(chain, pairs)


def _mean_multiply_nibbles(builder: ir.IRBuilder, chain: Any, w: Any, x: Any) -> Any:
    wide = vector(16, 32)
    products = builder.mul(builder.zext(w, wide), builder.sext(x, wide))
    return builder.add(chain, sum_neighbours(builder, products, I16X16, 2))


def _widen(builder: ir.IRBuilder, total: Any, chain: Any) -> Any:
    return builder.add(total, call(builder, "llvm.x86.avx2.pmadd.wd", I32X8, chain, splat_constant(I16X16, 1)))


def _mean_widen(builder: ir.IRBuilder, total: Any, chain: Any) -> Any:
    return builder.add(total, sum_neighbours(builder, chain, I32X8, 2))


def _multiply_bytes(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    signed = builder.xor(w, splat_constant(I8X32, -128))
    # |w| * (x with w's sign): maddubs wants its first operand unsigned
    negative = builder.icmp_signed("<", signed, splat_constant(I8X32, 0))
    size = builder.select(negative, builder.neg(signed), signed)
    turned = call(builder, "llvm.x86.avx2.psign.b", I8X32, x, signed)
    pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", I16X16, size, turned)
    return _widen(builder, total, pairs)


def _mean_multiply_bytes(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    return mean_dot(builder, total, w, x, offset=128)


def _in_order(builder: ir.IRBuilder, chain: Any) -> Any:
    # Four rows' sums just fit into 16 registers. Added up in another order they do not: LLVM then keeps two of them in
    # memory, and every block waits for a store and a load (measured: 12 % of the loop's time on Zen 3).
    return builder.asm(ir.FunctionType(chain.type, [chain.type]), "", "=x,0", [chain], False)


AVX2 = Isa(
    name="avx2",
    machine="x86_64",
    lanes=8,
    layout="avx2",
    cpu_flags=REQUIRED_CPU_FLAGS["avx2"],
    chain="i16",
    chain_lanes=16,
    total_lanes=8,
    tokens_at_once=4,
    chain_from_total=False,
    byte_offset=128,
    emit_spread8=spread8,
    emit_multiply_nibbles=_multiply_nibbles,
    emit_widen=_widen,
    emit_fold=same,
    emit_multiply_bytes=twice(_multiply_bytes),
    emit_pause=pause_x86,
    mean_multiply_nibbles=_mean_multiply_nibbles,
    mean_widen=_mean_widen,
    mean_fold=same,
    mean_multiply_bytes=twice(_mean_multiply_bytes),
    emit_in_order=_in_order,
)


def _dot(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    return call(builder, "llvm.x86.avx512.vpdpbusd.256", I32X8, total, w, x)


def _mean_dot(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    return mean_dot(builder, total, w, x, offset=0)


def _add(builder: ir.IRBuilder, total: Any, chain: Any) -> Any:
    return builder.add(total, chain)


AVXVNNI = Isa(
    name="avxvnni",
    machine="x86_64",
    lanes=8,
    layout="avx2",
    cpu_flags=REQUIRED_CPU_FLAGS["avxvnni"],
    chain="i32",
    chain_lanes=8,
    total_lanes=8,
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
