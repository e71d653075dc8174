"""Four activation rows where an instruction multiplies two rows of weights by two of activations, 8 columns at a time.

A register of a record holds four columns of each row; two of them, word by word in turn, hold eight columns of half as
many rows. Sums lie in four vectors of 32-bit lanes: the first two are of activation rows 0 and 1, in each one half of
the weight rows and a row's two sums side by side; the other two are of activation rows 2 and 3.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from cpu_kernels.isa_ops import OPTIONS, IsaOps
from cpu_kernels.vectors import high_nibbles, interleave_words, load, low_nibbles, separate_words


def make_weights16_of(ops: IsaOps, bits: int, weights_of: Any) -> Any:
    """weights16_of(address, step) → the 16 columns from 8 · step on, as two pairs of registers of unsigned bytes.

    The first pair holds the columns 0 … 3 and 8 … 11 of one half of the rows and of the other, the second pair the
    columns between and after. weights_of: `linear_int8.make_weights_of`.
    """
    kind, register = ops.bytes, 4 * ops.lanes

    @njit(**OPTIONS)
    def nibbles(address, step):
        # put together before they are unpacked: once for low and high ones
        here = address + step * register
        one, other = interleave_words(load(kind, here), load(kind, here + register))
        return (low_nibbles(one), low_nibbles(other)), (high_nibbles(one), high_nibbles(other))

    @njit(**OPTIONS)
    def any_width(address, step):
        a, b = weights_of(address, step)
        c, d = weights_of(address, step + 1)
        return interleave_words(a, c), interleave_words(b, d)

    return nibbles if bits == 4 else any_width


def make_four_by_pairs(ops: IsaOps, bits: int, weights_of: Any) -> Any:
    """`Blocks.four` for weights of `bits`."""
    pair, multiply, weights16_of = ops.pair, ops.multiply_pairs, make_weights16_of(ops, bits, weights_of)

    @njit(**OPTIONS)
    def multiply16(total0, total1, first, second, x, stride):
        # of each row's 16 activations the columns in the same order: 0 … 3 and 8 … 11, then the others
        even, odd = separate_words(load(pair, x), load(pair, x + stride))
        total0 = multiply(multiply(total0, first[0], even), second[0], odd)
        return total0, multiply(multiply(total1, first[1], even), second[1], odd)

    @njit(**OPTIONS)
    def step16(total0, total1, total2, total3, address, step, x, stride):
        first, second = weights16_of(address, step)
        here = x + 8 * step
        total0, total1 = multiply16(total0, total1, first, second, here, stride)
        total2, total3 = multiply16(total2, total3, first, second, here + 2 * stride, stride)
        return total0, total1, total2, total3

    @njit(**OPTIONS)
    def four(total0, total1, total2, total3, address, x, stride):
        total0, total1, total2, total3 = step16(total0, total1, total2, total3, address, 0, x, stride)
        return step16(total0, total1, total2, total3, address, 2, x, stride)

    return four


def make_rows_apart(ops: IsaOps) -> Any:
    """rows_apart(four totals of `Blocks.four`) → the four activation rows' own totals."""
    if not ops.multiply_pairs:

        @njit(**OPTIONS)
        def already(total0, total1, total2, total3):
            return total0, total1, total2, total3

        return already

    @njit(**OPTIONS)
    def rows_apart(total0, total1, total2, total3):
        a, b = separate_words(total0, total1)
        c, d = separate_words(total2, total3)
        return a, b, c, d

    return rows_apart
