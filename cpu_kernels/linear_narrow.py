"""Records of 2- and 3-bit weights (`packager.layouts`): four columns at a time are unpacked from two-bit fields.

A byte of a register holds four columns of two bits; three-bit weights have their high bits in a register of their own,
eight columns a byte. An unpacked weight is at most 7, so the chains of the 4-bit kernels have room to spare.
Per 32 columns and record: 8 multiplications as with 4 bits, 2 (3) loads instead of 4, but 16 (36) operations to unpack
instead of 8.
"""

from __future__ import annotations

from numba import njit, types

from cpu_kernels.isa_ops import OPTIONS, IsaOps, RecordKernels
from cpu_kernels.linear_int8 import make_add_group, make_dot4_of_pairs
from cpu_kernels.vectors import add, bit_field, convert, fma, load, load_nibbles, shift_left, splat, sub, zero


def make_int8_narrow(ops: IsaOps, bits: int) -> RecordKernels:
    """2- or 3-bit weights × int8 activations."""
    lanes, f32, f16, i32, byte_kind, chain_kind, total_kind = (
        ops.lanes, ops.f32, ops.f16, ops.i32, ops.bytes, ops.chain, ops.total
    )  # fmt: skip
    spread8, multiply, widen = ops.spread8, ops.multiply_nibbles, ops.widen
    add_group = make_add_group(ops)
    register = 4 * lanes
    three = bits == 3

    @njit(**OPTIONS)
    def unpack(low, high, place):
        """Columns 4 · place … + 3 of a block of 32, one weight a byte; `low` is the register that holds them."""
        weights = bit_field(low, 2 * (place % 4), 3)
        if three:
            # bit `place` of a byte of `high`, moved to bit 2
            if place < 2:
                weights = add(weights, bit_field(shift_left(high, 2 - place), 0, 4))
            else:
                weights = add(weights, bit_field(high, place - 2, 4))
        return weights

    @njit(**OPTIONS)
    def load_high(address):
        if three:
            return load(byte_kind, address + 2 * register)
        return zero(byte_kind)

    @njit(**OPTIONS)
    def constants_of(record, zeros, group):
        weight_scale = convert(f32, load(f16, record + group * lanes * 2))
        return weight_scale, convert(f32, load_nibbles(i32, record + zeros + group * lanes // 2))

    @njit(**OPTIONS)
    def multiply8(chain, first, second, x):
        x_low, x_high = spread8(x)
        return multiply(multiply(chain, first, x_low), second, x_high)

    # A step is 8 columns, written out four times: LLVM must see `place` as a number.
    @njit(**OPTIONS)
    def step1(chain, low, high, place, x):
        return multiply8(chain, unpack(low, high, place), unpack(low, high, place + 1), x + 4 * place)

    @njit(**OPTIONS)
    def dot1(record, zeros, weights, groups, group_size, columns, x):
        sums = zero(f32)
        constants = x + columns
        address = record + weights
        for group in range(groups):
            total = zero(total_kind)
            for _ in range(group_size // 32):
                high = load_high(address)
                low = load(byte_kind, address)
                chain = step1(step1(zero(chain_kind), low, high, 0, x), low, high, 2, x)
                low = load(byte_kind, address + register)
                chain = step1(step1(chain, low, high, 4, x), low, high, 6, x)
                total = widen(total, chain)
                address += register * bits
                x += 32
            weight_scale, zero_point = constants_of(record, zeros, group)
            at = constants + 4 * group
            sums = add_group(sums, total, weight_scale, zero_point, at, at + 4 * groups)
        return sums

    @njit(**OPTIONS)
    def step2(chain0, chain1, low, high, place, x, stride):
        first, second = unpack(low, high, place), unpack(low, high, place + 1)
        here = x + 4 * place
        return multiply8(chain0, first, second, here), multiply8(chain1, first, second, here + stride)

    @njit(**OPTIONS)
    def dot2(record, zeros, weights, groups, group_size, columns, x, stride):
        sums0, sums1 = zero(f32), zero(f32)
        constants = x + columns
        address = record + weights
        for group in range(groups):
            total0, total1 = zero(total_kind), zero(total_kind)
            for _ in range(group_size // 32):
                high = load_high(address)
                low = load(byte_kind, address)
                chain0, chain1 = step2(zero(chain_kind), zero(chain_kind), low, high, 0, x, stride)
                chain0, chain1 = step2(chain0, chain1, low, high, 2, x, stride)
                low = load(byte_kind, address + register)
                chain0, chain1 = step2(chain0, chain1, low, high, 4, x, stride)
                chain0, chain1 = step2(chain0, chain1, low, high, 6, x, stride)
                total0 = widen(total0, chain0)
                total1 = widen(total1, chain1)
                address += register * bits
                x += 32
            weight_scale, zero_point = constants_of(record, zeros, group)
            at = constants + 4 * group
            sum_at = at + 4 * groups
            sums0 = add_group(sums0, total0, weight_scale, zero_point, at, sum_at)
            sums1 = add_group(sums1, total1, weight_scale, zero_point, at + stride, sum_at + stride)
        return sums0, sums1

    @njit(**OPTIONS)
    def step4(a, b, c, d, low, high, place, x, stride):
        first, second = unpack(low, high, place), unpack(low, high, place + 1)
        here = x + 4 * place
        a = multiply8(a, first, second, here)
        b = multiply8(b, first, second, here + stride)
        c = multiply8(c, first, second, here + 2 * stride)
        d = multiply8(d, first, second, here + 3 * stride)
        return a, b, c, d

    @njit(**OPTIONS)
    def dot4(record, zeros, weights, groups, group_size, columns, x, stride):
        sums0, sums1, sums2, sums3 = zero(f32), zero(f32), zero(f32), zero(f32)
        constants = x + columns
        address = record + weights
        for group in range(groups):
            total0, total1, total2, total3 = zero(total_kind), zero(total_kind), zero(total_kind), zero(total_kind)
            for _ in range(group_size // 32):
                high = load_high(address)
                low = load(byte_kind, address)
                a, b, c, d = zero(chain_kind), zero(chain_kind), zero(chain_kind), zero(chain_kind)
                a, b, c, d = step4(a, b, c, d, low, high, 0, x, stride)
                a, b, c, d = step4(a, b, c, d, low, high, 2, x, stride)
                low = load(byte_kind, address + register)
                a, b, c, d = step4(a, b, c, d, low, high, 4, x, stride)
                a, b, c, d = step4(a, b, c, d, low, high, 6, x, stride)
                total0 = widen(total0, a)
                total1 = widen(total1, b)
                total2 = widen(total2, c)
                total3 = widen(total3, d)
                address += register * bits
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


def make_float3(ops: IsaOps) -> RecordKernels:
    """3-bit weights × float32 activations: (q - zero) · x, scaled once a group."""
    lanes, f32, f16, i32 = ops.lanes, ops.f32, ops.f16, ops.i32
    register = 4 * lanes

    @njit(**OPTIONS)
    def unpack(low, high, step, column, zero_point):
        """Column 16 · step + column of a block of 32, as float32 less its zero point; words of all lanes."""
        byte = 8 * (column % 4)
        field = column // 4
        two = bit_field(low, byte + 2 * field, 3)
        one = bit_field(high, byte + 4 * step + field, 1)
        return sub(convert(f32, add(two, shift_left(one, 2))), zero_point)

    @njit(**OPTIONS)
    def dot1(record, zeros, weights, groups, group_size, columns, x):
        sums = zero(f32)
        address = record + weights
        for group in range(groups):
            zero_point = convert(f32, load_nibbles(i32, record + zeros + group * lanes // 2))
            total = zero(f32)
            for _ in range(group_size // 32):
                high = load(i32, address + 2 * register)
                for step in range(2):
                    low = load(i32, address + step * register)
                    for column in range(16):
                        weight = unpack(low, high, step, column, zero_point)
                        at = x + 64 * step + 4 * column
                        total = fma(weight, splat(f32, load(types.float32, at)), total)
                address += register * 3
                x += 128
            sums = fma(total, convert(f32, load(f16, record + group * lanes * 2)), sums)
        return sums

    @njit(**OPTIONS)
    def dot4(record, zeros, weights, groups, group_size, columns, x, stride):
        sums0, sums1, sums2, sums3 = zero(f32), zero(f32), zero(f32), zero(f32)
        address = record + weights
        for group in range(groups):
            zero_point = convert(f32, load_nibbles(i32, record + zeros + group * lanes // 2))
            total0, total1, total2, total3 = zero(f32), zero(f32), zero(f32), zero(f32)
            for _ in range(group_size // 32):
                high = load(i32, address + 2 * register)
                for step in range(2):
                    low = load(i32, address + step * register)
                    for column in range(16):
                        weight = unpack(low, high, step, column, zero_point)
                        at = x + 64 * step + 4 * column
                        total0 = fma(weight, splat(f32, load(types.float32, at)), total0)
                        total1 = fma(weight, splat(f32, load(types.float32, at + stride)), total1)
                        total2 = fma(weight, splat(f32, load(types.float32, at + 2 * stride)), total2)
                        total3 = fma(weight, splat(f32, load(types.float32, at + 3 * stride)), total3)
                address += register * 3
                x += 128
            scale = convert(f32, load(f16, record + group * lanes * 2))
            sums0 = fma(total0, scale, sums0)
            sums1 = fma(total1, scale, sums1)
            sums2 = fma(total2, scale, sums2)
            sums3 = fma(total3, scale, sums3)
        return sums0, sums1, sums2, sums3

    return RecordKernels(dot1, dot4)
