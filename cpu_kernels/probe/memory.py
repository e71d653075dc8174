"""Loops that move memory: read, copy and triad (a = b + s · c), as in McCalpin's STREAM, and first touches of pages.

Every loop takes words.BLOCK bytes at a time in eight or more registers, with plain loads and stores; the hardware's
prefetcher does the rest. A cache line that is only written is read first, as in any program without streaming stores;
like STREAM, `WORK` does not count that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import njit, types

from cpu_kernels.isa_ops import IsaOps
from cpu_kernels.probe import words
from cpu_kernels.vectors import add, fma, load, mul, reduce_add, splat, store, zero


@dataclass(frozen=True)
class MemoryLoops:
    """read(a, bytes, passes) → int64; copy(a, b, …), triad(a, b, c, …), fill(a, …), touch_*(a, bytes, stride)."""

    read: Callable[..., Any]
    copy: Callable[..., Any]
    triad: Callable[..., Any]
    fill: Callable[..., Any]
    touch_read: Callable[..., Any]
    touch_write: Callable[..., Any]


def make_memory_loops(ops: IsaOps) -> MemoryLoops:
    """Loops in registers of the instruction set's own width."""
    i32, f32 = ops.i32, ops.f32
    register = 4 * ops.lanes  # 32 or 64 bytes: eight of them at a time
    group = 8 * register

    @njit(error_model="numpy")
    def read(a, size, passes):
        s0, s1, s2, s3, s4, s5, s6, s7 = (
            zero(i32), zero(i32), zero(i32), zero(i32), zero(i32), zero(i32), zero(i32), zero(i32),
        )  # fmt: skip
        for _ in range(passes):
            for at in range(a, a + size, group):
                s0 = add(s0, load(i32, at))
                s1 = add(s1, load(i32, at + register))
                s2 = add(s2, load(i32, at + 2 * register))
                s3 = add(s3, load(i32, at + 3 * register))
                s4 = add(s4, load(i32, at + 4 * register))
                s5 = add(s5, load(i32, at + 5 * register))
                s6 = add(s6, load(i32, at + 6 * register))
                s7 = add(s7, load(i32, at + 7 * register))
        total = add(add(add(s0, s1), add(s2, s3)), add(add(s4, s5), add(s6, s7)))
        return types.int64(reduce_add(total))

    @njit(error_model="numpy")
    def copy(a, b, size, passes):
        for _ in range(passes):
            for offset in range(0, size, group):
                at, to = a + offset, b + offset
                r0, r1 = load(i32, at), load(i32, at + register)
                r2, r3 = load(i32, at + 2 * register), load(i32, at + 3 * register)
                r4, r5 = load(i32, at + 4 * register), load(i32, at + 5 * register)
                r6, r7 = load(i32, at + 6 * register), load(i32, at + 7 * register)
                store(to, r0)
                store(to + register, r1)
                store(to + 2 * register, r2)
                store(to + 3 * register, r3)
                store(to + 4 * register, r4)
                store(to + 5 * register, r5)
                store(to + 6 * register, r6)
                store(to + 7 * register, r7)

    @njit(error_model="numpy")
    def triad(a, b, c, size, passes):
        three = splat(f32, types.float32(3.0))
        for _ in range(passes):
            for offset in range(0, size, 4 * register):
                x, y, z = a + offset, b + offset, c + offset
                r0 = fma(load(f32, z), three, load(f32, y))
                r1 = fma(load(f32, z + register), three, load(f32, y + register))
                r2 = fma(load(f32, z + 2 * register), three, load(f32, y + 2 * register))
                r3 = fma(load(f32, z + 3 * register), three, load(f32, y + 3 * register))
                store(x, r0)
                store(x + register, r1)
                store(x + 2 * register, r2)
                store(x + 3 * register, r3)

    @njit(error_model="numpy")
    def fill(a, size, passes):
        # Through a product that LLVM cannot know: a loop of constant stores would become a call of memset.
        value = mul(splat(f32, types.float32(passes)), splat(f32, types.float32(1.0)))
        for at in range(a, a + size, group):
            for offset in range(0, group, register):
                store(at + offset, value)

    @njit(error_model="numpy")
    def touch_read(a, size, stride):
        total = types.int64(0)
        for at in range(a, a + size, stride):
            total += load(types.int32, at)
        return total

    @njit(error_model="numpy")
    def touch_write(a, size, stride):
        for at in range(a, a + size, stride):
            store(at, types.int32(1))

    assert words.BLOCK % group == 0
    return MemoryLoops(read, copy, triad, fill, touch_read, touch_write)
