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
_WORK, _WORK_SLEEPERS, _QUIT = 4 * abi.SYNC_WORK, 4 * abi.SYNC_WORK_SLEEPERS, 4 * abi.SYNC_QUIT
_TICKETS = 4 * abi.SYNC_TICKETS
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

    step(context): thread 0 runs one step together with the threads that serve.
    serve(context, thread): takes part in every step until stop(context).
    """
    wait_while, publish = kernels.wait_while, kernels.publish

    def step(context):
        if load(types.int64, context + 8 * abi.N_THREADS) > 1:
            sync = load(types.int64, context + 8 * abi.SYNC)
            publish(sync + _WORK, np.int32(atomic_load(sync + _WORK) + 1), sync + _WORK_SLEEPERS)
        forward(context, types.int64(0))  # a literal would make a copy of the whole decoder

    def serve(context, thread):
        sync = load(types.int64, context + 8 * abi.SYNC)
        spins = load(types.int64, context + 8 * abi.SPIN_LIMIT)
        # Steps are numbered from 1, and none can pass without this thread: counting is enough.
        done = np.int32(0)
        while True:
            wait_while(sync + _WORK, done, sync + _WORK_SLEEPERS, spins)
            if atomic_load(sync + _QUIT) != 0:
                return
            done = np.int32(done + 1)
            forward(context, thread)

    def stop(context):
        sync = load(types.int64, context + 8 * abi.SYNC)
        atomic_store(sync + _QUIT, _ONE)
        publish(sync + _WORK, np.int32(atomic_load(sync + _WORK) + 1), sync + _WORK_SLEEPERS)

    return step, serve, stop
