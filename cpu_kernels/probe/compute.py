"""Loops that keep the CPU's multipliers busy, and one that counts its cycles.

float: CHAINS independent accumulators, more than any CPU here needs to hide the latency of a multiply-add (4 cycles × 2
units on most). int8: the very instructions of the kernels (`cpu_kernels.isa`), fed from the first-level cache as the
kernels for several tokens are, but without unpacking, scales and zero points; with a dot product or a product of
matrices, from registers. So this is what the kernels could reach at best on this CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import njit, types

from cpu_kernels.isa_ops import OPTIONS, IsaOps
from cpu_kernels.probe import words
from cpu_kernels.vectors import Vector, add, convert, fma, load, reduce_add, splat, zero

CHAINS = 12


@dataclass(frozen=True)
class ComputeLoops:
    """Each (rounds) or (address, rounds) → (operations or cycles of a round, a value that depends on all of them)."""

    fp32: Callable[..., Any]
    fp16: Callable[..., Any] | None  # where the target has arithmetic in float16
    int8_nibbles: Callable[..., Any]
    int8_bytes: Callable[..., Any]
    chain: Callable[..., Any]


def make_compute_loops(ops: IsaOps, *, has_fp16: bool) -> ComputeLoops:
    """Loops for an instruction set; has_fp16: the target multiplies float16 vectors by itself."""
    if ops.multiply_pairs:
        nibbles = whole_bytes = _make_pairs(ops)  # one instruction for weights of every width
    else:
        nibbles = _make_chained_nibbles(ops) if ops.isa.chain == "i16" else _make_dot_nibbles(ops)
        whole_bytes = _make_bytes(ops)
    return ComputeLoops(
        fp32=_make_float_loop(ops.f32, ops.f32),
        fp16=_make_float_loop(Vector("f16", 2 * ops.lanes), Vector("f32", 2 * ops.lanes)) if has_fp16 else None,
        int8_nibbles=nibbles,
        int8_bytes=whole_bytes,
        chain=_make_chain(),
    )


def _make_float_loop(kind: Vector, wide: Vector) -> Any:
    f32 = Vector("f32", kind.lanes)
    work = 2 * kind.lanes * CHAINS

    @njit(error_model="numpy")
    def multiply_add(rounds):
        # Sums of a small product that LLVM does not know, from different starts: it computes equal chains only once.
        # The sum is the operand that Arm's instruction overwrites.
        one = convert(kind, splat(f32, types.float32(1.0)))
        x = convert(kind, splat(f32, types.float32(rounds) * types.float32(1e-12)))
        y = add(one, x)
        a = convert(kind, splat(f32, types.float32(0.25)))
        b, c, d = add(a, one), add(a, add(one, one)), add(a, add(add(one, one), one))
        four = add(add(one, one), add(one, one))
        e, f, g, h = add(a, four), add(b, four), add(c, four), add(d, four)
        i, j, k, m = add(e, four), add(f, four), add(g, four), add(h, four)
        for _ in range(rounds):
            a, b, c, d = fma(x, y, a), fma(x, y, b), fma(x, y, c), fma(x, y, d)
            e, f, g, h = fma(x, y, e), fma(x, y, f), fma(x, y, g), fma(x, y, h)
            i, j, k, m = fma(x, y, i), fma(x, y, j), fma(x, y, k), fma(x, y, m)
        total = add(add(add(a, b), add(c, d)), add(add(add(e, f), add(g, h)), add(add(i, j), add(k, m))))
        return types.int64(work), types.int64(reduce_add(convert(wide, total)))

    return multiply_add


def _make_chained_nibbles(ops: IsaOps) -> Any:
    """16-bit sums, widened after 32 columns: a round is eight registers of weights on two or four rows."""
    total_kind, chain_kind, kind = ops.total, ops.chain, ops.bytes
    multiply, widen, fold, spread8 = ops.multiply_nibbles, ops.widen, ops.fold, ops.spread8
    register = 4 * ops.lanes
    rows = ops.isa.tokens_at_once
    has_four = rows == 4  # a constant for Numba, which leaves out what is not for this number of rows
    work = 2 * words.ROUND_REGISTERS * register * rows
    activations = words.WEIGHT_REGISTERS * register
    row = words.ROW_BYTES

    @njit(**OPTIONS)
    def extend(chain, w, v, at):
        x, y = spread8(at)
        return multiply(multiply(chain, w, x), v, y)

    @njit(error_model="numpy")
    def chains(a, rounds):
        t0, t1, t2, t3 = zero(total_kind), zero(total_kind), zero(total_kind), zero(total_kind)
        for count in range(rounds):
            # Other values each time: LLVM would multiply the same ones once, before the loop.
            here, x = a + (count & 7) * register, a + activations + (count & 3) * 8
            c0, c1, c2, c3 = zero(chain_kind), zero(chain_kind), zero(chain_kind), zero(chain_kind)
            for _ in range(words.ROUND_REGISTERS // 2):
                w, v = load(kind, here), load(kind, here + register)
                c0, c1 = extend(c0, w, v, x), extend(c1, w, v, x + row)
                if has_four:
                    c2, c3 = extend(c2, w, v, x + 2 * row), extend(c3, w, v, x + 3 * row)
                here += 2 * register
                x += 8
            t0, t1 = widen(t0, c0), widen(t1, c1)
            if has_four:
                t2, t3 = widen(t2, c2), widen(t3, c3)
        total = add(fold(t0), fold(t1))
        if has_four:
            total = add(total, add(fold(t2), fold(t3)))
        return types.int64(work), types.int64(reduce_add(total))

    return chains


def _make_dot_nibbles(ops: IsaOps) -> Any:
    """32-bit sums that never overflow: CHAINS of them, of three registers of weights and four rows."""
    chain_kind, kind = ops.chain, ops.bytes
    multiply, widen, fold, total_kind = ops.multiply_nibbles, ops.widen, ops.fold, ops.total
    register = 4 * ops.lanes
    work = 2 * CHAINS * register
    activations = words.WEIGHT_REGISTERS * register

    @njit(error_model="numpy")
    def dots(a, rounds):
        w, v, u = load(kind, a), load(kind, a + register), load(kind, a + 2 * register)
        p, q = load(kind, a + activations), load(kind, a + activations + register)
        r, s = load(kind, a + activations + 2 * register), load(kind, a + activations + 3 * register)
        c0, c1, c2, c3 = zero(chain_kind), zero(chain_kind), zero(chain_kind), zero(chain_kind)
        c4, c5, c6, c7 = zero(chain_kind), zero(chain_kind), zero(chain_kind), zero(chain_kind)
        c8, c9, ca, cb = zero(chain_kind), zero(chain_kind), zero(chain_kind), zero(chain_kind)
        for _ in range(rounds):
            c0, c1, c2, c3 = multiply(c0, w, p), multiply(c1, w, q), multiply(c2, w, r), multiply(c3, w, s)
            c4, c5, c6, c7 = multiply(c4, v, p), multiply(c5, v, q), multiply(c6, v, r), multiply(c7, v, s)
            c8, c9, ca, cb = multiply(c8, u, p), multiply(c9, u, q), multiply(ca, u, r), multiply(cb, u, s)
        none = zero(total_kind)
        first = add(add(widen(none, c0), widen(none, c1)), add(widen(none, c2), widen(none, c3)))
        second = add(add(widen(none, c4), widen(none, c5)), add(widen(none, c6), widen(none, c7)))
        third = add(add(widen(none, c8), widen(none, c9)), add(widen(none, ca), widen(none, cb)))
        return types.int64(work), types.int64(reduce_add(fold(add(add(first, second), third))))

    return dots


def _make_pairs(ops: IsaOps) -> Any:
    """Products of matrices: eight sums, of four registers of weights and two pairs of activation rows."""
    sums_kind, kind, pair, multiply = ops.i32, ops.bytes, ops.pair, ops.multiply_pairs
    register = 4 * ops.lanes
    work = 2 * 8 * 8 * ops.lanes  # a lane of a sum takes 8 columns
    activations = words.WEIGHT_REGISTERS * register

    @njit(error_model="numpy")
    def pairs(a, rounds):
        w, v = load(kind, a), load(kind, a + register)
        u, t = load(kind, a + 2 * register), load(kind, a + 3 * register)
        p, q = load(pair, a + activations), load(pair, a + activations + 16)
        c0, c1, c2, c3 = zero(sums_kind), zero(sums_kind), zero(sums_kind), zero(sums_kind)
        c4, c5, c6, c7 = zero(sums_kind), zero(sums_kind), zero(sums_kind), zero(sums_kind)
        for _ in range(rounds):
            c0, c1, c2, c3 = multiply(c0, w, p), multiply(c1, w, q), multiply(c2, v, p), multiply(c3, v, q)
            c4, c5, c6, c7 = multiply(c4, u, p), multiply(c5, u, q), multiply(c6, t, p), multiply(c7, t, q)
        first, second = add(add(c0, c1), add(c2, c3)), add(add(c4, c5), add(c6, c7))
        return types.int64(work), types.int64(reduce_add(add(first, second)))

    return pairs


def _make_bytes(ops: IsaOps) -> Any:
    """8-bit weights: a round is eight registers of weights, two at a time, on two or four rows."""
    total_kind, kind = ops.total, ops.bytes
    multiply, fold, spread8 = ops.multiply_bytes, ops.fold, ops.spread8
    register = 4 * ops.lanes
    rows = ops.isa.tokens_at_once
    has_four = rows == 4  # as above
    work = 2 * words.ROUND_REGISTERS * register * rows
    activations = words.WEIGHT_REGISTERS * register
    row = words.ROW_BYTES
    step = rows  # registers of weights for one turn of the loop

    @njit(**OPTIONS)
    def extend(total, w, v, at):
        x, y = spread8(at)
        return multiply(total, w, v, x, y)

    @njit(error_model="numpy")
    def products(a, rounds):
        t0, t1, t2, t3 = zero(total_kind), zero(total_kind), zero(total_kind), zero(total_kind)
        s0, s1, s2, s3 = zero(total_kind), zero(total_kind), zero(total_kind), zero(total_kind)
        for count in range(rounds):
            here, x = a + (count & 7) * register, a + activations + (count & 3) * 8
            for _ in range(words.ROUND_REGISTERS // step):
                w, v = load(kind, here), load(kind, here + register)
                t0, t1 = extend(t0, w, v, x), extend(t1, w, v, x + row)
                if has_four:
                    t2, t3 = extend(t2, w, v, x + 2 * row), extend(t3, w, v, x + 3 * row)
                    # another set of sums, so that an instruction does not wait for the one before
                    w, v = load(kind, here + 2 * register), load(kind, here + 3 * register)
                    s0, s1 = extend(s0, w, v, x + 8), extend(s1, w, v, x + 8 + row)
                    s2, s3 = extend(s2, w, v, x + 8 + 2 * row), extend(s3, w, v, x + 8 + 3 * row)
                here += step * register
                x += 4 * step
        total = add(t0, t1)
        if has_four:
            total = add(add(total, add(t2, t3)), add(add(s0, s1), add(s2, s3)))
        return types.int64(work), types.int64(reduce_add(fold(total)))

    return products


def _make_chain() -> Any:
    """Additions and exclusive ors by turns, each of which takes the result of the one before: a cycle each."""

    @njit(error_model="numpy")
    def chain(rounds, a, b):
        value = types.int64(1)
        for _ in range(rounds):
            for _ in range(words.CHAIN_CYCLES // 2):
                value = (value + a) ^ b
        return types.int64(words.CHAIN_CYCLES), value

    return chain
