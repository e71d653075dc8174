"""Weights × int8 activations: where a decoder spends its time. Here is how 32 columns of each width are multiplied.

Weights of 2 to 4 bits become unsigned bytes, four columns in a 32-bit lane, and go straight into the instruction
set's multiplication by signed bytes; the products of 32 columns are the longest chain that 16-bit sums can take (see
the instruction set's file). Weights of 8 bits have an instruction sequence of their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numba import njit

from cpu_kernels.group_loops import Blocks, make_record_loops
from cpu_kernels.isa_ops import OPTIONS, IsaOps, RecordKernels
from cpu_kernels.linear_pairs import make_four_by_pairs
from cpu_kernels.vectors import (
    add,
    bit_field,
    convert,
    high_nibbles,
    load,
    load_nibbles,
    low_nibbles,
    shift_left,
    splat,
    sub,
    widen_unsigned,
    zero,
)


def make_int8(ops: IsaOps, bits: int) -> RecordKernels:
    """Kernels for weights of 2, 3, 4 or 8 bits."""
    blocks = make_byte_blocks(ops) if bits == 8 else make_chain_blocks(ops, bits)
    if ops.multiply_pairs:
        blocks = replace(blocks, four=make_four_by_pairs(ops, bits, make_weights_of(ops, bits)))
    return make_record_loops(ops, blocks)


def make_weights_of(ops: IsaOps, bits: int) -> Any:
    """weights_of(address, step) → the columns 8 · step … + 3, and + 4 … + 7, of a block: one weight a byte."""
    register = 4 * ops.lanes
    kind = ops.bytes

    @njit(**OPTIONS)
    def nibbles(address, step):
        packed = load(kind, address + step * register)
        return low_nibbles(packed), high_nibbles(packed)

    # A byte of a register holds four columns of two bits; three-bit weights have their high bits in a register of
    # their own, eight columns a byte. Per block: 2 (3) loads instead of 4, but 16 (36) operations to unpack, not 8.
    @njit(**OPTIONS)
    def two_bits(address, step):
        low = load(kind, address + step // 2 * register)
        return bit_field(low, 4 * (step % 2), 3), bit_field(low, 4 * (step % 2) + 2, 3)

    @njit(**OPTIONS)
    def third_bit(high, place):
        # bit `place` of a byte, moved to bit 2
        if place < 2:
            return bit_field(shift_left(high, 2 - place), 0, 4)
        return bit_field(high, place - 2, 4)

    @njit(**OPTIONS)
    def three_bits(address, step):
        high = load(kind, address + 2 * register)
        first, second = two_bits(address, step)
        return add(first, third_bit(high, 2 * step)), add(second, third_bit(high, 2 * step + 1))

    @njit(**OPTIONS)
    def whole_bytes(address, step):
        return load(kind, address + 2 * step * register), load(kind, address + (2 * step + 1) * register)

    return {2: two_bits, 3: three_bits, 4: nibbles, 8: whole_bytes}[bits]


def make_chain_blocks(ops: IsaOps, bits: int) -> Blocks:
    """2-, 3- or 4-bit weights. The four steps of a block are written out: LLVM does not unroll them for every CPU."""
    lanes, f32, f16, i32, chain_kind = ops.lanes, ops.f32, ops.f16, ops.i32, ops.chain
    spread8, multiply, widen, in_order = ops.spread8, ops.multiply_nibbles, ops.widen, ops.in_order
    from_total = ops.isa.chain_from_total
    weights_of = make_weights_of(ops, bits)

    @njit(**OPTIONS)
    def constants_of(record, zeros, group):
        weight_scale = convert(f32, load(f16, record + group * lanes * 2))
        return weight_scale, convert(f32, load_nibbles(i32, record + zeros + group * lanes // 2))

    @njit(**OPTIONS)
    def multiply8(chain, first, second, x):
        x_low, x_high = spread8(x)
        return multiply(multiply(chain, first, x_low), second, x_high)

    @njit(**OPTIONS)
    def step1(chain, address, step, x):
        first, second = weights_of(address, step)
        return multiply8(chain, first, second, x + 8 * step)

    @njit(**OPTIONS)
    def one(total, address, x):
        chain = step1(zero(chain_kind), address, 0, x)
        chain = step1(chain, address, 1, x)
        chain = step1(chain, address, 2, x)
        return widen(total, step1(chain, address, 3, x))

    @njit(**OPTIONS)
    def step2(a, b, address, step, x, stride):
        first, second = weights_of(address, step)
        here = x + 8 * step
        return multiply8(a, first, second, here), multiply8(b, first, second, here + stride)

    @njit(**OPTIONS)
    def two(total0, total1, address, x, stride):
        a, b = step2(zero(chain_kind), zero(chain_kind), address, 0, x, stride)
        a, b = step2(a, b, address, 1, x, stride)
        a, b = step2(a, b, address, 2, x, stride)
        a, b = step2(a, b, address, 3, x, stride)
        return widen(total0, a), widen(total1, b)

    @njit(**OPTIONS)
    def step4(a, b, c, d, address, step, x, stride):
        first, second = weights_of(address, step)
        here = x + 8 * step
        a = in_order(multiply8(a, first, second, here))
        b = in_order(multiply8(b, first, second, here + stride))
        c = in_order(multiply8(c, first, second, here + 2 * stride))
        d = in_order(multiply8(d, first, second, here + 3 * stride))
        return a, b, c, d

    @njit(**OPTIONS)
    def begin(total):
        return total if from_total else zero(chain_kind)

    @njit(**OPTIONS)
    def finish(total, chain):
        return chain if from_total else widen(total, chain)

    @njit(**OPTIONS)
    def four(total0, total1, total2, total3, address, x, stride):
        a, b, c, d = begin(total0), begin(total1), begin(total2), begin(total3)
        a, b, c, d = step4(a, b, c, d, address, 0, x, stride)
        a, b, c, d = step4(a, b, c, d, address, 1, x, stride)
        a, b, c, d = step4(a, b, c, d, address, 2, x, stride)
        a, b, c, d = step4(a, b, c, d, address, 3, x, stride)
        return finish(total0, a), finish(total1, b), finish(total2, c), finish(total3, d)

    return Blocks(4 * lanes * bits, one, two, four, constants_of)


def make_byte_blocks(ops: IsaOps) -> Blocks:
    """8-bit weights."""
    lanes, f32, f16, i32, i8 = ops.lanes, ops.f32, ops.f16, ops.i32, ops.i8
    spread8, multiply, weights_of = ops.spread8, ops.multiply_bytes, make_weights_of(ops, 8)
    offset = np.float32(ops.isa.byte_offset)

    @njit(**OPTIONS)
    def constants_of(record, zeros, group):
        zero_point = convert(f32, widen_unsigned(i32, load(i8, record + zeros + group * lanes)))
        return convert(f32, load(f16, record + group * lanes * 2)), sub(zero_point, splat(f32, offset))

    @njit(**OPTIONS)
    def multiply8(total, first, second, x):
        x_low, x_high = spread8(x)
        return multiply(total, first, second, x_low, x_high)

    @njit(**OPTIONS)
    def one(total, address, x):
        for step in range(4):
            first, second = weights_of(address, step)
            total = multiply8(total, first, second, x + 8 * step)
        return total

    @njit(**OPTIONS)
    def two(total0, total1, address, x, stride):
        for step in range(4):
            first, second = weights_of(address, step)
            here = x + 8 * step
            total0 = multiply8(total0, first, second, here)
            total1 = multiply8(total1, first, second, here + stride)
        return total0, total1

    @njit(**OPTIONS)
    def four(total0, total1, total2, total3, address, x, stride):
        for step in range(4):
            first, second = weights_of(address, step)
            here = x + 8 * step
            total0 = multiply8(total0, first, second, here)
            total1 = multiply8(total1, first, second, here + stride)
            total2 = multiply8(total2, first, second, here + 2 * stride)
            total3 = multiply8(total3, first, second, here + 3 * stride)
        return total0, total1, total2, total3

    return Blocks(32 * lanes, one, two, four, constants_of)
