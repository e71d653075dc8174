"""Norm, activation quantization, exponentials: work on one row of float32 features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, types

from cpu_kernels.isa_ops import OPTIONS, IsaOps
from cpu_kernels.vectors import (
    Vector,
    absolute,
    add,
    convert,
    div,
    fma,
    load,
    maximum,
    minimum,
    mul,
    reduce_add,
    reduce_max,
    reinterpret,
    round_even,
    shift_left,
    splat,
    square_root,
    store,
    sub,
    zero,
)

# exp(x) = 2**n · e**r with n = round(x / ln 2), |r| ≤ ln 2 / 2; ln 2 in two parts so that r is exact (Cody and Waite).
_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
# e**r as the Taylor series to r**7: the remainder is below 2e-9 on |r| ≤ 0.3466, so float32 rounding dominates.
_EXP_SERIES = tuple(np.float32(1 / factor) for factor in (5040, 720, 120, 24, 6, 2))
_C7, _C6, _C5, _C4, _C3, _C2 = _EXP_SERIES
_ONE = np.float32(1)
_EXP_LOW = np.float32(-87)  # below: the smallest result, 1.6e-38, instead of a denormal
_EXP_HIGH = np.float32(88)


def make_exponential(lanes: int) -> Any:
    """exp of a float32 vector of `lanes`, relative error below 2e-7; arguments are clamped to -87 … 88."""
    f32, i32 = Vector("f32", lanes), Vector("i32", lanes)

    @njit(**OPTIONS)
    def exponential(x):
        x = minimum(maximum(x, splat(f32, _EXP_LOW)), splat(f32, _EXP_HIGH))
        n = round_even(mul(x, splat(f32, _LOG2_E)))
        r = fma(n, splat(f32, -_LN2_HIGH), x)
        r = fma(n, splat(f32, -_LN2_LOW), r)
        p = fma(splat(f32, _C7), r, splat(f32, _C6))
        p = fma(p, r, splat(f32, _C5))
        p = fma(p, r, splat(f32, _C4))
        p = fma(p, r, splat(f32, _C3))
        p = fma(p, r, splat(f32, _C2))
        p = fma(p, r, splat(f32, _ONE))
        p = fma(p, r, splat(f32, _ONE))
        power = shift_left(add(convert(i32, n), splat(i32, types.int32(127))), 23)
        return mul(p, reinterpret(f32, power))

    return exponential


# Of sums over a row, whatever the instruction set's own width: all of them add in the same order, to the same bits.
SUM_LANES = 16


@dataclass(frozen=True)
class RowKernels:
    """Functions on one row (addresses of float32 values; widths are multiples of 32).

    rms_norm(x, weight, width, eps, out): out = x / sqrt(mean(x²) + eps) · weight
    quantize_row(x, width, group_size, out): int8 values, scales and sums of each group (an activation row)
    copy_row(x, width, out)
    silu_multiply(gate, up) → vector
    """

    rms_norm: Callable[..., Any]
    quantize_row: Callable[..., Any]
    copy_row: Callable[..., Any]
    silu_multiply: Callable[..., Any]


def make_row_kernels(ops: IsaOps) -> RowKernels:
    """Row kernels at the instruction set's own width."""
    lanes, f32, i32, i8 = ops.lanes, ops.f32, ops.i32, ops.i8
    exponential = make_exponential(lanes)
    summed = Vector("f32", SUM_LANES)
    step_bytes = 4 * lanes

    @njit(**OPTIONS)
    def rms_norm(x, weight, width, eps, out):
        squares = zero(summed)
        for offset in range(0, 4 * width, 4 * SUM_LANES):
            value = load(summed, x + offset)
            squares = fma(value, value, squares)
        mean = reduce_add(squares) / np.float32(width)
        scale = splat(f32, _ONE / square_root_scalar(mean + eps))
        for offset in range(0, 4 * width, step_bytes):
            store(out + offset, mul(mul(load(f32, x + offset), scale), load(f32, weight + offset)))

    @njit(**OPTIONS)
    def square_root_scalar(value):
        return reduce_max(square_root(splat(f32, value)))

    @njit(**OPTIONS)
    def quantize_row(x, width, group_size, out):
        scales = out + width
        sums = scales + 4 * (width // group_size)
        for group in range(width // group_size):
            first = x + 4 * group * group_size
            largest = zero(f32)
            for offset in range(0, 4 * group_size, step_bytes):
                largest = maximum(absolute(load(f32, first + offset)), largest)
            top = reduce_max(largest)
            scale = top / np.float32(127)
            inverse = np.float32(0)
            if scale > np.float32(0):
                inverse = np.float32(127) / top
            total = zero(f32)
            target = out + group * group_size
            for column in range(0, group_size, lanes):
                value = round_even(mul(load(f32, first + 4 * column), splat(f32, inverse)))
                total = add(total, value)
                store(target + column, convert(i8, convert(i32, value)))
            store(scales + 4 * group, scale)
            store(sums + 4 * group, reduce_add(total))

    @njit(**OPTIONS)
    def copy_row(x, width, out):
        for offset in range(0, 4 * width, step_bytes):
            store(out + offset, load(f32, x + offset))

    @njit(**OPTIONS)
    def silu_multiply(gate, up):
        one = splat(f32, _ONE)
        return mul(div(gate, add(one, exponential(sub(zero(f32), gate)))), up)

    return RowKernels(rms_norm, quantize_row, copy_row, silu_multiply)


def reference_rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """float64 meaning of rms_norm."""
    wide = x.astype(np.float64)
    result: np.ndarray = wide / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + eps) * weight
    return result


def reference_quantize_row(x: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int8 values [width], scales [groups], sums [groups] that quantize_row writes."""
    groups = x.astype(np.float32).reshape(-1, group_size)
    top = np.abs(groups).max(axis=1)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
    q = np.round(groups * inverse[:, None])
    return q.astype(np.int8).reshape(-1), (top / np.float32(127)), q.sum(axis=1).astype(np.float32)
