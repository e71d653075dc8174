"""The records of `cpu_kernels.linear` × int8 activations: where a decoder spends its time.

One step is 8 columns: one register of packed nibbles, or two of bytes, and 8 activation bytes spread to every lane.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from cpu_kernels.isa_ops import OPTIONS, IsaOps, RecordKernels
from cpu_kernels.vectors import (
    convert,
    fma,
    high_nibbles,
    load,
    load_nibbles,
    low_nibbles,
    mul,
    negate,
    splat,
    sub,
    widen_unsigned,
    zero,
)


def make_add_group(ops: IsaOps) -> Any:
    """add_group(sums, total, weight scale, zero point, address of the activations' scale, of their sum) → sums."""
    f32, fold = ops.f32, ops.fold

    @njit(**OPTIONS)
    def add_group(sums, total, weight_scale, zero_point, scale_at, sum_at):
        x_scale = splat(f32, load(types.float32, scale_at))
        x_sum = splat(f32, load(types.float32, sum_at))
        # every number here is a whole one below 2**24: exact, and one rounding less changes nothing
        corrected = fma(negate(zero_point), x_sum, convert(f32, fold(total)))
        return fma(corrected, mul(weight_scale, x_scale), sums)

    return add_group


def make_int8_nibbles(ops: IsaOps) -> RecordKernels:
    """4-bit weights × int8 activations."""
    lanes, f32, f16, i32, byte_kind, chain_kind, total_kind = (
        ops.lanes, ops.f32, ops.f16, ops.i32, ops.bytes, ops.chain, ops.total
    )  # fmt: skip
    spread8, multiply, widen = ops.spread8, ops.multiply_nibbles, ops.widen
    from_total = ops.isa.chain_from_total
    add_group = make_add_group(ops)
    register = 4 * lanes  # bytes; 8 columns of packed nibbles

    @njit(**OPTIONS)
    def constants_of(record, zeros, group):
        weight_scale = convert(f32, load(f16, record + group * lanes * 2))
        return weight_scale, convert(f32, load_nibbles(i32, record + zeros + group * lanes // 2))

    @njit(**OPTIONS)
    def multiply8(chain, low, high, x):
        x_low, x_high = spread8(x)
        return multiply(multiply(chain, low, x_low), high, x_high)

    # A step is 8 columns. Four of them, 32 columns, are written out: the longest chain that 16-bit sums can take (see
    # the instruction set's file), and LLVM does not unroll a loop of them for every CPU.
    @njit(**OPTIONS)
    def step1(chain, address, x):
        packed = load(byte_kind, address)
        return multiply8(chain, low_nibbles(packed), high_nibbles(packed), x)

    @njit(**OPTIONS)
    def dot1(record, zeros, weights, groups, group_size, columns, x):
        sums = zero(f32)
        constants = x + columns
        address = record + weights
        for group in range(groups):
            total = zero(total_kind)
            for _ in range(group_size // 32):
                chain = step1(zero(chain_kind), address, x)
                chain = step1(chain, address + register, x + 8)
                chain = step1(chain, address + 2 * register, x + 16)
                chain = step1(chain, address + 3 * register, x + 24)
                total = widen(total, chain)
                address += register * 4
                x += 32
            weight_scale, zero_point = constants_of(record, zeros, group)
            at = constants + 4 * group
            sums = add_group(sums, total, weight_scale, zero_point, at, at + 4 * groups)
        return sums

    @njit(**OPTIONS)
    def step2(chain0, chain1, address, x, stride):
        packed = load(byte_kind, address)
        low = low_nibbles(packed)
        high = high_nibbles(packed)
        return multiply8(chain0, low, high, x), multiply8(chain1, low, high, x + stride)

    @njit(**OPTIONS)
    def dot2(record, zeros, weights, groups, group_size, columns, x, stride):
        sums0, sums1 = zero(f32), zero(f32)
        constants = x + columns
        address = record + weights
        for group in range(groups):
            total0, total1 = zero(total_kind), zero(total_kind)
            for _ in range(group_size // 32):
                chain0, chain1 = step2(zero(chain_kind), zero(chain_kind), address, x, stride)
                chain0, chain1 = step2(chain0, chain1, address + register, x + 8, stride)
                chain0, chain1 = step2(chain0, chain1, address + 2 * register, x + 16, stride)
                chain0, chain1 = step2(chain0, chain1, address + 3 * register, x + 24, stride)
                total0 = widen(total0, chain0)
                total1 = widen(total1, chain1)
                address += register * 4
                x += 32
            weight_scale, zero_point = constants_of(record, zeros, group)
            at = constants + 4 * group
            sum_at = at + 4 * groups
            sums0 = add_group(sums0, total0, weight_scale, zero_point, at, sum_at)
            sums1 = add_group(sums1, total1, weight_scale, zero_point, at + stride, sum_at + stride)
        return sums0, sums1

    @njit(**OPTIONS)
    def step4(chain0, chain1, chain2, chain3, address, x, stride):
        packed = load(byte_kind, address)
        low = low_nibbles(packed)
        high = high_nibbles(packed)
        chain0 = multiply8(chain0, low, high, x)
        chain1 = multiply8(chain1, low, high, x + stride)
        chain2 = multiply8(chain2, low, high, x + 2 * stride)
        chain3 = multiply8(chain3, low, high, x + 3 * stride)
        return chain0, chain1, chain2, chain3

    @njit(**OPTIONS)
    def begin(total):
        return total if from_total else zero(chain_kind)

    @njit(**OPTIONS)
    def finish(total, chain):
        return chain if from_total else widen(total, chain)

    @njit(**OPTIONS)
    def dot4(record, zeros, weights, groups, group_size, columns, x, stride):
        sums0, sums1, sums2, sums3 = zero(f32), zero(f32), zero(f32), zero(f32)
        address = record + weights
        constants = x + columns
        for group in range(groups):
            total0, total1, total2, total3 = zero(total_kind), zero(total_kind), zero(total_kind), zero(total_kind)
            for _ in range(group_size // 32):
                a, b, c, d = begin(total0), begin(total1), begin(total2), begin(total3)
                a, b, c, d = step4(a, b, c, d, address, x, stride)
                a, b, c, d = step4(a, b, c, d, address + register, x + 8, stride)
                a, b, c, d = step4(a, b, c, d, address + 2 * register, x + 16, stride)
                a, b, c, d = step4(a, b, c, d, address + 3 * register, x + 24, stride)
                total0 = finish(total0, a)
                total1 = finish(total1, b)
                total2 = finish(total2, c)
                total3 = finish(total3, d)
                address += register * 4
                x += 32
            weight_scale, zero_point = constants_of(record, zeros, group)
            at = constants + 4 * group
            sum_at = at + 4 * groups
            sums0 = add_group(sums0, total0, weight_scale, zero_point, at, sum_at)
            sums1 = add_group(sums1, total1, weight_scale, zero_point, at + stride, sum_at + stride)
            sums2 = add_group(sums2, total2, weight_scale, zero_point, at + 2 * stride, sum_at + 2 * stride)
            sums3 = add_group(sums3, total3, weight_scale, zero_point, at + 3 * stride, sum_at + 3 * stride)
        return sums0, sums1, sums2, sums3

    return RecordKernels(dot1, dot4 if ops.isa.tokens_at_once == 4 else make_dot4_of_pairs(dot2))


def make_dot4_of_pairs(dot2: Any) -> Any:
    """Four activation rows as two pairs, for registers that hold no more. The second finds the record in the cache."""

    @njit(**OPTIONS)
    def dot4(record, zeros, weights, groups, group_size, columns, x, stride):
        a, b = dot2(record, zeros, weights, groups, group_size, columns, x, stride)
        c, d = dot2(record, zeros, weights, groups, group_size, columns, x + 2 * stride, stride)
        return a, b, c, d

    return dot4


def make_int8_bytes(ops: IsaOps) -> RecordKernels:
    """8-bit weights × int8 activations."""
    lanes, f32, f16, i32, i8, byte_kind, total_kind = (
        ops.lanes, ops.f32, ops.f16, ops.i32, ops.i8, ops.bytes, ops.total
    )  # fmt: skip
    spread8, multiply = ops.spread8, ops.multiply_bytes
    add_group = make_add_group(ops)
    register = 4 * lanes  # bytes; 4 columns
    offset = np.float32(ops.isa.byte_offset)

    @njit(**OPTIONS)
    def constants_of(record, zeros, group):
        zero_point = convert(f32, widen_unsigned(i32, load(i8, record + zeros + group * lanes)))
        return convert(f32, load(f16, record + group * lanes * 2)), sub(zero_point, splat(f32, offset))

    @njit(**OPTIONS)
    def multiply8(total, w_low, w_high, x):
        x_low, x_high = spread8(x)
        return multiply(total, w_low, w_high, x_low, x_high)

    @njit(**OPTIONS)
    def dot1(record, zeros, weights, groups, group_size, columns, x):
        sums = zero(f32)
        constants = x + columns
        address = record + weights
        for group in range(groups):
            total = zero(total_kind)
            for _ in range(group_size // 32):
                for step in range(4):
                    w_low = load(byte_kind, address + 2 * step * register)
                    w_high = load(byte_kind, address + (2 * step + 1) * register)
                    total = multiply8(total, w_low, w_high, x + step * 8)
                address += register * 8
                x += 32
            weight_scale, zero_point = constants_of(record, zeros, group)
            at = constants + 4 * group
            sums = add_group(sums, total, weight_scale, zero_point, at, at + 4 * groups)
        return sums

    @njit(**OPTIONS)
    def dot2(record, zeros, weights, groups, group_size, columns, x, stride):
        sums0, sums1 = zero(f32), zero(f32)
        constants = x + columns
        address = record + weights
        for group in range(groups):
            total0, total1 = zero(total_kind), zero(total_kind)
            for _ in range(group_size // 8):
                w_low = load(byte_kind, address)
                w_high = load(byte_kind, address + register)
                total0 = multiply8(total0, w_low, w_high, x)
                total1 = multiply8(total1, w_low, w_high, x + stride)
                address += register * 2
                x += 8
            weight_scale, zero_point = constants_of(record, zeros, group)
            at = constants + 4 * group
            sum_at = at + 4 * groups
            sums0 = add_group(sums0, total0, weight_scale, zero_point, at, sum_at)
            sums1 = add_group(sums1, total1, weight_scale, zero_point, at + stride, sum_at + stride)
        return sums0, sums1

    @njit(**OPTIONS)
    def dot4(record, zeros, weights, groups, group_size, columns, x, stride):
        sums0, sums1, sums2, sums3 = zero(f32), zero(f32), zero(f32), zero(f32)
        constants = x + columns
        address = record + weights
        for group in range(groups):
            total0, total1, total2, total3 = zero(total_kind), zero(total_kind), zero(total_kind), zero(total_kind)
            for _ in range(group_size // 8):
                w_low = load(byte_kind, address)
                w_high = load(byte_kind, address + register)
                total0 = multiply8(total0, w_low, w_high, x)
                total1 = multiply8(total1, w_low, w_high, x + stride)
                total2 = multiply8(total2, w_low, w_high, x + 2 * stride)
                total3 = multiply8(total3, w_low, w_high, x + 3 * stride)
                address += register * 2
                x += 8
            weight_scale, zero_point = constants_of(record, zeros, group)
            at = constants + 4 * group
            sum_at = at + 4 * groups
            sums0 = add_group(sums0, total0, weight_scale, zero_point, at, sum_at)
            sums1 = add_group(sums1, total1, weight_scale, zero_point, at + stride, sum_at + stride)
            sums2 = add_group(sums2, total2, weight_scale, zero_point, at + 2 * stride, sum_at + 2 * stride)
            sums3 = add_group(sums3, total3, weight_scale, zero_point, at + 3 * stride, sum_at + 3 * stride)
        return sums0, sums1, sums2, sums3

    return RecordKernels(dot1, dot4 if ops.isa.tokens_at_once == 4 else make_dot4_of_pairs(dot2))
