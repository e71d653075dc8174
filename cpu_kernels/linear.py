"""Matrix times vector and matrix times a few vectors, on 2- to 8-bit weights with group scales and zero points.

One record (8 or 16 output rows, `packager.layouts`) against one or four activation rows; every 32-bit lane is an output
row, so nothing is summed across lanes. With int8 activations x ≈ scale_x · q_x per group:

    out[o] = Σ_g scale_w[o, g] · scale_x[g] · (Σ_k q_w · q_x  -  zero[o, g] · Σ_k q_x)

so the weights stay unsigned and the zero point costs one multiplication a group.
An activation row in memory: int8 [in_features], float32 scales [groups], float32 sums of q_x [groups].
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

from cpu_kernels.isa_ops import OPTIONS, IsaOps, RecordKernels
from cpu_kernels.vectors import (
    bit_field,
    convert,
    fma,
    load,
    load_nibbles,
    splat,
    sub,
    widen_unsigned,
    zero,
)


def make_float(ops: IsaOps, bits: int) -> RecordKernels:
    """2-, 4- or 8-bit weights × float32 activations: (q - zero) · x, scaled once a group. A row of x is float32."""
    lanes, f32, f16, i32, i8 = ops.lanes, ops.f32, ops.f16, ops.i32, ops.i8
    register = 4 * lanes
    values = 32 // bits  # of one output row in one 32-bit lane
    mask = (1 << bits) - 1

    @njit(**OPTIONS)
    def shift_of(column):
        # byte k of a lane holds the columns k, k + 4, …, the first one in its lowest bits
        return 8 * (column % 4) + bits * (column // 4)

    @njit(**OPTIONS)
    def zero_points(record, zeros, group):
        if bits < 8:
            return convert(f32, load_nibbles(i32, record + zeros + group * lanes // 2))
        return convert(f32, widen_unsigned(i32, load(i8, record + zeros + group * lanes)))

    @njit(**OPTIONS)
    def dot1(record, zeros, weights, groups, group_size, columns, x):
        sums = zero(f32)
        address = record + weights
        for group in range(groups):
            zero_point = zero_points(record, zeros, group)
            total = zero(f32)
            for _ in range(group_size // values):
                packed = load(i32, address)
                for column in range(values):
                    weight = sub(convert(f32, bit_field(packed, shift_of(column), mask)), zero_point)
                    total = fma(weight, splat(f32, load(types.float32, x + 4 * column)), total)
                address += register
                x += 4 * values
            sums = fma(total, convert(f32, load(f16, record + group * lanes * 2)), sums)
        return sums

    @njit(**OPTIONS)
    def dot4(record, zeros, weights, groups, group_size, columns, x, stride):
        sums0, sums1, sums2, sums3 = zero(f32), zero(f32), zero(f32), zero(f32)
        address = record + weights
        for group in range(groups):
            zero_point = zero_points(record, zeros, group)
            total0, total1, total2, total3 = zero(f32), zero(f32), zero(f32), zero(f32)
            for _ in range(group_size // values):
                packed = load(i32, address)
                for column in range(values):
                    weight = sub(convert(f32, bit_field(packed, shift_of(column), mask)), zero_point)
                    at = x + 4 * column
                    total0 = fma(weight, splat(f32, load(types.float32, at)), total0)
                    total1 = fma(weight, splat(f32, load(types.float32, at + stride)), total1)
                    total2 = fma(weight, splat(f32, load(types.float32, at + 2 * stride)), total2)
                    total3 = fma(weight, splat(f32, load(types.float32, at + 3 * stride)), total3)
                address += register
                x += 4 * values
            scale = convert(f32, load(f16, record + group * lanes * 2))
            sums0 = fma(total0, scale, sums0)
            sums1 = fma(total1, scale, sums1)
            sums2 = fma(total2, scale, sums2)
            sums3 = fma(total3, scale, sums3)
        return sums0, sums1, sums2, sums3

    return RecordKernels(dot1, dot4)


def reference_linear(
    x: np.ndarray, q: np.ndarray, scales: np.ndarray, zeros: np.ndarray, group_size: int
) -> np.ndarray:
    """What every kernel here must give, in float64.

    x [tokens, in], q [out, in], scales and zeros [out, in / group_size] → [tokens, out].
    """
    wide_scales = np.repeat(scales.astype(np.float64), group_size, axis=1)
    wide_zeros = np.repeat(zeros.astype(np.float64), group_size, axis=1)
    result: np.ndarray = x.astype(np.float64) @ ((q.astype(np.float64) - wide_zeros) * wide_scales).T
    return result
