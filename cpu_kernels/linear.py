"""Matrix times vector and matrix times a few vectors, on 2- to 8-bit weights with group scales and zero points.

One record (8 or 16 output rows, `packager.layouts`) against one or four activation rows; every 32-bit lane is an output
row, so nothing is summed across lanes. With int8 activations x ≈ scale_x · q_x per group:

    out[o] = Σ_g scale_w[o, g] · scale_x[g] · (Σ_k q_w · q_x  -  zero[o, g] · Σ_k q_x)

so the weights stay unsigned and the zero point costs one multiplication a group.
An activation row in memory: int8 [in_features], float32 scales [groups], float32 sums of q_x [groups].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, types

from cpu_kernels.abi import zero_bits
from cpu_kernels.isa_ops import OPTIONS, IsaOps, RecordKernels
from cpu_kernels.linear_narrow import make_float3, make_int8_narrow
from cpu_kernels.vectors import (
    bit_field,
    convert,
    fma,
    high_nibbles,
    load,
    load_nibbles,
    low_nibbles,
    mul,
    splat,
    sub,
    widen_unsigned,
    zero,
)


@dataclass(frozen=True)
class Estimates:
    """What one call costs: operations (a multiply-add is 2) and bytes read or written once."""

    operations: int
    bytes: int


def estimate_linear(out_features: int, in_features: int, bits: int, group_size: int, tokens: int = 1) -> Estimates:
    """Cost of a linear layer on `tokens` rows: weights once, int8 activations and float32 results once a token."""
    groups = in_features // group_size
    weights = out_features * (in_features * bits + groups * (16 + zero_bits(bits))) // 8  # a scale has 16 bits
    return Estimates(
        operations=2 * tokens * out_features * in_features,
        bytes=weights + tokens * (in_features + 8 * groups + 4 * out_features),
    )


def make_int8_nibbles(ops: IsaOps) -> RecordKernels:
    """4-bit weights × int8 activations."""
    lanes, f32, f16, i32, byte_kind, chain_kind = ops.lanes, ops.f32, ops.f16, ops.i32, ops.bytes, ops.chain
    broadcast4, multiply, widen = ops.broadcast4, ops.multiply_nibbles, ops.widen
    register = 4 * lanes  # bytes; 8 columns of packed nibbles

    @njit(**OPTIONS)
    def sum32(total, weights, x):
        # 32 columns: the longest chain that 16-bit sums can take (see the instruction set's file)
        chain = zero(chain_kind)
        for step in range(4):
            packed = load(byte_kind, weights + step * register)
            chain = multiply(chain, low_nibbles(packed), broadcast4(x + step * 8))
            chain = multiply(chain, high_nibbles(packed), broadcast4(x + step * 8 + 4))
        return widen(total, chain)

    @njit(**OPTIONS)
    def scaled(sums, total, record, zeros, group, x_scale, x_sum):
        weight_scale = convert(f32, load(f16, record + group * lanes * 2))
        zero_point = convert(f32, load_nibbles(i32, record + zeros + group * lanes // 2))
        corrected = sub(convert(f32, total), mul(zero_point, splat(f32, x_sum)))
        return fma(corrected, mul(weight_scale, splat(f32, x_scale)), sums)

    @njit(**OPTIONS)
    def dot1(record, zeros, weights, groups, group_size, columns, x):
        sums = zero(f32)
        scales = x + columns
        x_sums = scales + 4 * groups
        address = record + weights
        for group in range(groups):
            total = zero(i32)
            for _ in range(group_size // 32):
                total = sum32(total, address, x)
                address += register * 4
                x += 32
            x_scale = load(types.float32, scales + 4 * group)
            x_sum = load(types.float32, x_sums + 4 * group)
            sums = scaled(sums, total, record, zeros, group, x_scale, x_sum)
        return sums

    @njit(**OPTIONS)
    def dot4(record, zeros, weights, groups, group_size, columns, x, stride):
        sums0, sums1, sums2, sums3 = zero(f32), zero(f32), zero(f32), zero(f32)
        address = record + weights
        constants = x + columns
        for group in range(groups):
            total0, total1, total2, total3 = zero(i32), zero(i32), zero(i32), zero(i32)
            for _ in range(group_size // 32):
                chain0, chain1, chain2, chain3 = zero(chain_kind), zero(chain_kind), zero(chain_kind), zero(chain_kind)
                for step in range(4):
                    packed = load(byte_kind, address + step * register)
                    low = low_nibbles(packed)
                    high = high_nibbles(packed)
                    here = x + step * 8
                    chain0 = multiply(chain0, low, broadcast4(here))
                    chain1 = multiply(chain1, low, broadcast4(here + stride))
                    chain2 = multiply(chain2, low, broadcast4(here + 2 * stride))
                    chain3 = multiply(chain3, low, broadcast4(here + 3 * stride))
                    chain0 = multiply(chain0, high, broadcast4(here + 4))
                    chain1 = multiply(chain1, high, broadcast4(here + stride + 4))
                    chain2 = multiply(chain2, high, broadcast4(here + 2 * stride + 4))
                    chain3 = multiply(chain3, high, broadcast4(here + 3 * stride + 4))
                total0 = widen(total0, chain0)
                total1 = widen(total1, chain1)
                total2 = widen(total2, chain2)
                total3 = widen(total3, chain3)
                address += register * 4
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

    @njit(**OPTIONS)
    def add_group(sums, total, weight_scale, zero_point, scale_at, sum_at):
        x_scale = splat(f32, load(types.float32, scale_at))
        x_sum = splat(f32, load(types.float32, sum_at))
        corrected = sub(convert(f32, total), mul(zero_point, x_sum))
        return fma(corrected, mul(weight_scale, x_scale), sums)

    return RecordKernels(dot1, dot4)


def make_int8_bytes(ops: IsaOps) -> RecordKernels:
    """8-bit weights × int8 activations."""
    lanes, f32, f16, i32, i8, byte_kind = ops.lanes, ops.f32, ops.f16, ops.i32, ops.i8, ops.bytes
    broadcast4, multiply = ops.broadcast4, ops.multiply_bytes
    register = 4 * lanes  # bytes; 4 columns
    offset = np.float32(ops.isa.byte_offset)

    @njit(**OPTIONS)
    def add_group(sums, total, record, zeros, group, scale_at, sum_at):
        weight_scale = convert(f32, load(f16, record + group * lanes * 2))
        zero_point = convert(f32, widen_unsigned(i32, load(i8, record + zeros + group * lanes)))
        signed_zero = sub(zero_point, splat(f32, offset))
        x_scale = splat(f32, load(types.float32, scale_at))
        x_sum = splat(f32, load(types.float32, sum_at))
        corrected = sub(convert(f32, total), mul(signed_zero, x_sum))
        return fma(corrected, mul(weight_scale, x_scale), sums)

    @njit(**OPTIONS)
    def dot1(record, zeros, weights, groups, group_size, columns, x):
        sums = zero(f32)
        constants = x + columns
        address = record + weights
        for group in range(groups):
            total = zero(i32)
            for _ in range(group_size // 32):
                for step in range(8):
                    total = multiply(total, load(byte_kind, address + step * register), broadcast4(x + step * 4))
                address += register * 8
                x += 32
            at = constants + 4 * group
            sums = add_group(sums, total, record, zeros, group, at, at + 4 * groups)
        return sums

    @njit(**OPTIONS)
    def dot4(record, zeros, weights, groups, group_size, columns, x, stride):
        sums0, sums1, sums2, sums3 = zero(f32), zero(f32), zero(f32), zero(f32)
        constants = x + columns
        address = record + weights
        for group in range(groups):
            total0, total1, total2, total3 = zero(i32), zero(i32), zero(i32), zero(i32)
            for _ in range(group_size // 4):
                w = load(byte_kind, address)
                total0 = multiply(total0, w, broadcast4(x))
                total1 = multiply(total1, w, broadcast4(x + stride))
                total2 = multiply(total2, w, broadcast4(x + 2 * stride))
                total3 = multiply(total3, w, broadcast4(x + 3 * stride))
                address += register
                x += 4
            at = constants + 4 * group
            sum_at = at + 4 * groups
            sums0 = add_group(sums0, total0, record, zeros, group, at, sum_at)
            sums1 = add_group(sums1, total1, record, zeros, group, at + stride, sum_at + stride)
            sums2 = add_group(sums2, total2, record, zeros, group, at + 2 * stride, sum_at + 2 * stride)
            sums3 = add_group(sums3, total3, record, zeros, group, at + 3 * stride, sum_at + 3 * stride)
        return sums0, sums1, sums2, sums3

    return RecordKernels(dot1, dot4)


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


def make_record_kernels(ops: IsaOps, bits: int, activations: str) -> RecordKernels:
    """Kernels for weights of `bits` 2, 3, 4 or 8 and activations "int8" or "float"."""
    if activations == "float":
        return make_float3(ops) if bits == 3 else make_float(ops, bits)
    if bits < 4:
        return make_int8_narrow(ops, bits)
    return make_int8_nibbles(ops) if bits == 4 else make_int8_bytes(ops)


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
