"""Records of 2- and 3-bit weights (`packager.layouts`): four columns at a time are unpacked from two-bit fields.

A byte of a register holds four columns of two bits; three-bit weights have their high bits in a register of their own,
eight columns a byte. An unpacked weight is at most 7, so the chains of the 4-bit kernels have room to spare.
Per 32 columns and record: 8 multiplications as with 4 bits, 2 (3) loads instead of 4, but 16 (36) operations to unpack
instead of 8.
"""

from __future__ import annotations

from numba import njit, types

from cpu_kernels.isa_ops import OPTIONS, IsaOps, RecordKernels
from cpu_kernels.vectors import add, bit_field, convert, fma, load, load_nibbles, mul, shift_left, splat, sub, zero


def make_int8_narrow(ops: IsaOps, bits: int) -> RecordKernels:
    """2- or 3-bit weights × int8 activations."""
    lanes, f32, f16, i32, byte_kind, chain_kind = ops.lanes, ops.f32, ops.f16, ops.i32, ops.bytes, ops.chain
    broadcast4, multiply, widen = ops.broadcast4, ops.multiply_nibbles, ops.widen
    register = 4 * lanes
    three = bits == 3

    @njit(**OPTIONS)
    def unpack(low, high, step, field):
        """Columns 16 · step + 4 · field … + 3 of a block of 32, one weight a byte."""
        weights = bit_field(low, 2 * field, 3)
        if three:
            # bit 4 · step + field of `high`, moved to bit 2
            place = 4 * step + field
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
    def add_group(sums, total, weight_scale, zero_point, scale_at, sum_at):
        x_scale = splat(f32, load(types.float32, scale_at))
        x_sum = splat(f32, load(types.float32, sum_at))
        corrected = sub(convert(f32, total), mul(zero_point, x_sum))
        return fma(corrected, mul(weight_scale, x_scale), sums)

    @njit(**OPTIONS)
    def dot1(record, zeros, weights, groups, group_size, columns, x):
        sums = zero(f32)
        constants = x + columns
        address = record + weights
        for group in range(groups):
            total = zero(i32)
            for _ in range(group_size // 32):
                high = load_high(address)
                chain = zero(chain_kind)
                for step in range(2):
                    low = load(byte_kind, address + step * register)
                    for field in range(4):
                        w = unpack(low, high, step, field)
                        chain = multiply(chain, w, broadcast4(x + 16 * step + 4 * field))
                total = widen(total, chain)
                address += register * bits
                x += 32
            weight_scale = convert(f32, load(f16, record + group * lanes * 2))
            zero_point = convert(f32, load_nibbles(i32, record + zeros + group * lanes // 2))
            at = constants + 4 * group
            sums = add_group(sums, total, weight_scale, zero_point, at, at + 4 * groups)
        return sums

    @njit(**OPTIONS)
    def dot4(record, zeros, weights, groups, group_size, columns, x, stride):
        sums0, sums1, sums2, sums3 = zero(f32), zero(f32), zero(f32), zero(f32)
        constants = x + columns
        address = record + weights
        for group in range(groups):
            total0, total1, total2, total3 = zero(i32), zero(i32), zero(i32), zero(i32)
            for _ in range(group_size // 32):
                high = load_high(address)
                chain0, chain1, chain2, chain3 = zero(chain_kind), zero(chain_kind), zero(chain_kind), zero(chain_kind)
                for step in range(2):
                    low = load(byte_kind, address + step * register)
                    for field in range(4):
                        w = unpack(low, high, step, field)
                        here = x + 16 * step + 4 * field
                        chain0 = multiply(chain0, w, broadcast4(here))
                        chain1 = multiply(chain1, w, broadcast4(here + stride))
                        chain2 = multiply(chain2, w, broadcast4(here + 2 * stride))
                        chain3 = multiply(chain3, w, broadcast4(here + 3 * stride))
                total0 = widen(total0, chain0)
                total1 = widen(total1, chain1)
                total2 = widen(total2, chain2)
                total3 = widen(total3, chain3)
                address += register * bits
                x += 32
            weight_scale = convert(f32, load(f16, record + group * lanes * 2))
            zero_point = convert(f32, load_nibbles(i32, record + zeros + group * lanes // 2))
            at = constants + 4 * group
            sum_at = at + 4 * groups
            sums0 = add_group(sums0, total0, weight_scale, zero_point, at, sum_at)
            sums1 = add_group(sums1, total1, weight_scale, zero_point, at + stride, sum_at + stride)
            sums2 = add_group(sums2, total2, weight_scale, zero_point, at + 2 * stride, sum_at + 2 * stride)
            sums3 = add_group(sums3, total3, weight_scale, zero_point, at + 3 * stride, sum_at + 3 * stride)
        return sums0, sums1, sums2, sums3

    return RecordKernels(dot1, dot4)


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
