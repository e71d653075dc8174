"""How the threads of one token meet: a barrier that spins briefly and then sleeps, and the wait for the next step.

A waiting thread pauses SPIN_LIMIT times (some tens of microseconds) and then sleeps in the kernel on a futex: on a busy
machine it gives its core to whoever needs it instead of burning a time slice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, types

from cpu_kernels import abi
from cpu_kernels.atomics import atomic_add, atomic_load, atomic_store, make_futex
from cpu_kernels.isa_ops import OPTIONS, IsaOps
from cpu_kernels.vectors import load

_ARRIVED, _GENERATION, _SLEEPERS = 4 * abi.SYNC_ARRIVED, 4 * abi.SYNC_GENERATION, 4 * abi.SYNC_SLEEPERS
_WORK, _WORK_STRIDE, _MAX_THREADS = 4 * abi.SYNC_WORK, 4 * abi.SYNC_WORK_STRIDE, abi.MAX_THREADS
_QUIT, _TICKETS = 4 * abi.SYNC_QUIT, 4 * abi.SYNC_TICKETS
_ONE = np.int32(1)
_EVERYONE = np.int32(1 << 30)


@dataclass(frozen=True)
class ThreadKernels:
    """barrier(context); wait_while(word, value, sleepers, spins); publish(word, value, sleepers).

    take_ticket(context) → 0, 1, 2, … in whatever order the threads ask; from 0 again after each barrier.
    """

    barrier: Callable[..., Any]
    take_ticket: Callable[..., Any]
    wait_while: Callable[..., Any]
    publish: Callable[..., Any]


def make_thread_kernels(ops: IsaOps) -> ThreadKernels:
    """Thread functions with the instruction set's own pause and the machine's own futex number."""
    pause = ops.pause
    futex_wait, futex_wake = make_futex(ops.isa.machine)

    @njit(error_model="numpy")
    def sleep_while(word, value, sleepers):
        atomic_add(sleepers, _ONE)
        while atomic_load(word) == value:
            futex_wait(word, value)
        atomic_add(sleepers, np.int32(-1))

    @njit(**OPTIONS)
    def wait_while(word, value, sleepers, spins):
        left = spins
        while atomic_load(word) == value:
            if left <= 0:
                sleep_while(word, value, sleepers)
                return
            left -= 1
            pause()

    @njit(**OPTIONS)
    def publish(word, value, sleepers):
        # A sleeper counts itself before it looks at the word, and we look at the count after we wrote the word:
        # with sequentially consistent operations one of the two sees the other.
        atomic_store(word, value)
        if atomic_load(sleepers) > 0:
            futex_wake(word, _EVERYONE)

    @njit(error_model="numpy")
    def barrier(context):
        threads = load(types.int64, context + 8 * abi.N_THREADS)
        if threads == 1:
            return
        sync = load(types.int64, context + 8 * abi.SYNC)
        generation = atomic_load(sync + _GENERATION)
        if atomic_add(sync + _ARRIVED, _ONE) == threads - 1:
            atomic_store(sync + _ARRIVED, np.int32(0))
            atomic_store(sync + _TICKETS, np.int32(0))
            publish(sync + _GENERATION, np.int32(generation + 1), sync + _SLEEPERS)
        else:
            spins = load(types.int64, context + 8 * abi.SPIN_LIMIT)
            wait_while(sync + _GENERATION, generation, sync + _SLEEPERS, spins)

    @njit(**OPTIONS)
    def take_ticket(context):
        return types.int64(atomic_add(load(types.int64, context + 8 * abi.SYNC) + _TICKETS, _ONE))

    return ThreadKernels(barrier, take_ticket, wait_while, publish)


def make_step_functions(kernels: ThreadKernels, forward: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """(step, serve, stop) around forward(context, thread).

    step(context): thread 0 runs one step together with threads 1 … N_THREADS - 1; others that serve sleep on.
    serve(context, thread): takes part in every step that this thread is called to, until stop(context).
    """
    wait_while, publish = kernels.wait_while, kernels.publish

    @njit(**OPTIONS)
    def work_of(context, thread):
        return load(types.int64, context + 8 * abi.SYNC) + _WORK + _WORK_STRIDE * thread

    @njit(error_model="numpy")
    def call(context, first, last):
        for thread in range(first, last):
            work = work_of(context, thread)
            publish(work, np.int32(atomic_load(work) + 1), work + 4)

    def step(context):
        call(context, types.int64(1), load(types.int64, context + 8 * abi.N_THREADS))
        forward(context, types.int64(0))  # a literal would make a copy of the whole decoder

    def serve(context, thread):
        work = work_of(context, thread)
        quit_word = load(types.int64, context + 8 * abi.SYNC) + _QUIT
        spins = load(types.int64, context + 8 * abi.SPIN_LIMIT)
        # A thread's steps are numbered from 1, and none of them can end without it: counting is enough.
        done = np.int32(0)
        while True:
            wait_while(work, done, work + 4, spins)
            if atomic_load(quit_word) != 0:
                return
            done = np.int32(done + 1)
            forward(context, thread)

    def stop(context):
        atomic_store(load(types.int64, context + 8 * abi.SYNC) + _QUIT, _ONE)
        call(context, types.int64(1), types.int64(_MAX_THREADS))

    return step, serve, stop
