"""A record against activation rows, group by group: the loops that all kernels with int8 activations share.

What differs between widths of weights is a block: 32 columns of a record. The loops run blocks over a group, correct
the group's sum by the zero point, scale it and fetch the weights ahead of time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import njit, types

from cpu_kernels.isa_ops import OPTIONS, IsaOps, RecordKernels
from cpu_kernels.linear_pairs import make_rows_apart
from cpu_kernels.vectors import convert, fma, load, mul, negate, prefetch, splat, zero

# One row of activations takes so little time for a weight that the weights' way from memory is what counts. A CPU's own
# prefetcher stops at every 4 KiB page, and what a core looks ahead by itself ends after a few hundred bytes, so the
# lines are asked for this many bytes ahead. Measured from 512 to 8192: below 1024 it is late, above 2048 it is no gain.
AHEAD = 2048
LINE = 64


@dataclass(frozen=True)
class Blocks:
    """32 columns of a record, `bytes` of it, against 1, 2 or 4 activation rows.

    one(total, address, x) → total; two(total0, total1, address, x, x_stride) → two; four(…) → four, which
    `linear_pairs.make_rows_apart` turns into totals of a row each.
    constants_of(record, zeros, group) → (scale, zero point), float32 vectors of the record's rows.
    """

    bytes: int
    one: Callable[..., Any]
    two: Callable[..., Any]
    four: Callable[..., Any]
    constants_of: Callable[..., Any]


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


def make_record_loops(ops: IsaOps, blocks: Blocks) -> RecordKernels:
    """The kernels for one and for four activation rows."""
    f32, total_kind = ops.f32, ops.total
    one, two, four, constants_of, block_bytes = blocks.one, blocks.two, blocks.four, blocks.constants_of, blocks.bytes
    add_group, rows_apart = make_add_group(ops), make_rows_apart(ops)
    lines = -(-block_bytes // LINE)
    constant_bytes = 3 * ops.lanes  # of a group: 16-bit scales and zero points of at most 8 bits

    @njit(**OPTIONS)
    def dot1(record, zeros, weights, groups, group_size, columns, x):
        sums = zero(f32)
        constants = x + columns
        address = record + weights
        for group in range(groups):
            # Blocks ask for what lies AHEAD of them, which leaves out as many bytes a record as its constants take.
            prefetch(record + AHEAD + group * constant_bytes)
            total = zero(total_kind)
            for _ in range(group_size // 32):
                for line in range(lines):
                    prefetch(address + AHEAD + line * LINE)
                total = one(total, address, x)
                address += block_bytes
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
            for _ in range(group_size // 32):
                total0, total1 = two(total0, total1, address, x, stride)
                address += block_bytes
                x += 32
            weight_scale, zero_point = constants_of(record, zeros, group)
            at = constants + 4 * group
            sum_at = at + 4 * groups
            sums0 = add_group(sums0, total0, weight_scale, zero_point, at, sum_at)
            sums1 = add_group(sums1, total1, weight_scale, zero_point, at + stride, sum_at + stride)
        return sums0, sums1

    @njit(**OPTIONS)
    def dot4_of_pairs(record, zeros, weights, groups, group_size, columns, x, stride):
        # for registers that hold no more than two rows' sums; the second pair finds the record in the cache
        a, b = dot2(record, zeros, weights, groups, group_size, columns, x, stride)
        c, d = dot2(record, zeros, weights, groups, group_size, columns, x + 2 * stride, stride)
        return a, b, c, d

    @njit(**OPTIONS)
    def dot4(record, zeros, weights, groups, group_size, columns, x, stride):
        sums0, sums1, sums2, sums3 = zero(f32), zero(f32), zero(f32), zero(f32)
        constants = x + columns
        address = record + weights
        for group in range(groups):
            total0, total1, total2, total3 = zero(total_kind), zero(total_kind), zero(total_kind), zero(total_kind)
            for _ in range(group_size // 32):
                total0, total1, total2, total3 = four(total0, total1, total2, total3, address, x, stride)
                address += block_bytes
                x += 32
            total0, total1, total2, total3 = rows_apart(total0, total1, total2, total3)
            weight_scale, zero_point = constants_of(record, zeros, group)
            at = constants + 4 * group
            sum_at = at + 4 * groups
            sums0 = add_group(sums0, total0, weight_scale, zero_point, at, sum_at)
            sums1 = add_group(sums1, total1, weight_scale, zero_point, at + stride, sum_at + stride)
            sums2 = add_group(sums2, total2, weight_scale, zero_point, at + 2 * stride, sum_at + 2 * stride)
            sums3 = add_group(sums3, total3, weight_scale, zero_point, at + 3 * stride, sum_at + 3 * stride)
        return sums0, sums1, sums2, sums3

    return RecordKernels(dot1, dot4 if ops.isa.tokens_at_once == 4 else dot4_of_pairs)
