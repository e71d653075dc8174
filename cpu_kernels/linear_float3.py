"""3-bit weights × float32 activations, unpacked from a register of two-bit fields and one of high bits.

The record (`packager.layouts`): 32 columns are two registers of low bits, four columns a byte, and one of high bits.
"""

from __future__ import annotations

from numba import njit, types

from cpu_kernels.isa_ops import OPTIONS, IsaOps, RecordKernels
from cpu_kernels.vectors import add, bit_field, convert, fma, load, load_nibbles, shift_left, splat, sub, zero


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
