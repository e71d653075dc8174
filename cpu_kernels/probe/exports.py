"""The probe object: step, serve and stop around one function that does what the context's OPERATION says."""

from __future__ import annotations

from typing import Any

from numba import njit, types

from cpu_kernels.counter import make_counter
from cpu_kernels.crosscompile import Export
from cpu_kernels.isa.base import Isa
from cpu_kernels.isa_ops import OPTIONS, IsaOps
from cpu_kernels.probe import words
from cpu_kernels.probe.compute import make_compute_loops
from cpu_kernels.probe.memory import make_memory_loops
from cpu_kernels.threads import make_step_functions, make_thread_kernels
from cpu_kernels.vectors import load, store
from device_profiles.target import Target


def probe_exports(isa: Isa, target: Target) -> list[Export]:
    """edgeawq_probe_step(context), edgeawq_probe_serve(context, thread) and edgeawq_stop(context)."""
    ops = IsaOps(isa)
    threads = make_thread_kernels(ops)
    step, serve, stop = make_step_functions(threads, _make_forward(ops, target, threads.barrier))
    return [
        Export("edgeawq_probe_step", step, 1),
        Export("edgeawq_probe_serve", serve, 2),
        Export("edgeawq_stop", stop, 1),
    ]


def _make_forward(ops: IsaOps, target: Target, barrier: Any) -> Any:
    memory = make_memory_loops(ops)
    compute = make_compute_loops(ops, has_fp16="+fullfp16" in target.features or "+avx512fp16" in target.features)
    read, copy, triad, fill = memory.read, memory.copy, memory.triad, memory.fill
    touch_read, touch_write = memory.touch_read, memory.touch_write
    fp32, int8_nibbles, int8_bytes, chain = compute.fp32, compute.int8_nibbles, compute.int8_bytes, compute.chain
    has_fp16 = compute.fp16 is not None
    fp16 = compute.fp16 or fp32
    read_counter = make_counter(ops.isa.machine)

    @njit(**OPTIONS)
    def field(context, word):
        return load(types.int64, context + 8 * word)

    @njit(error_model="numpy")
    def run(context, thread):
        """(work, check) of the operation."""
        operation, repeats = field(context, words.OPERATION), field(context, words.REPEATS)
        size, stride = field(context, words.BYTES), field(context, words.STRIDE)
        part = thread * stride
        a, b, c = field(context, words.A), field(context, words.B), field(context, words.C)
        work, check = types.int64(0), types.int64(0)
        if operation == words.READ:
            check = read(a + part, size, repeats)
            work = size
        elif operation == words.COPY:
            copy(a + part, b + part, size, repeats)
            work = 2 * size
        elif operation == words.TRIAD:
            triad(a + part, b + part, c + part, size, repeats)
            work = 3 * size
        elif operation == words.FILL:
            fill(a + part, size, repeats)
            work, repeats = size, types.int64(1)
        elif operation == words.FP32:
            work, check = fp32(repeats)
        elif operation == words.FP16:
            if has_fp16:
                work, check = fp16(repeats)
        elif operation == words.INT8_NIBBLES:
            work, check = int8_nibbles(a + part, repeats)
        elif operation == words.INT8_BYTES:
            work, check = int8_bytes(a + part, repeats)
        elif operation == words.CHAIN:
            work, check = chain(repeats, a, b)
        elif operation == words.BARRIER:
            for _ in range(repeats):
                barrier(context)
            work = types.int64(1)
        elif operation == words.TOUCH_READ:
            check = touch_read(a, size, stride)
            work, repeats = size, types.int64(1)
        elif operation == words.TOUCH_WRITE:
            touch_write(a, size, stride)
            work, repeats = size, types.int64(1)
        return work * repeats, check

    @njit(error_model="numpy")
    def forward(context, thread):
        result = field(context, words.RESULTS) + 8 * words.RESULT_WORDS * thread
        barrier(context)
        start = read_counter()
        work, check = run(context, thread)
        end = read_counter()
        store(result + 8 * words.START, start)
        store(result + 8 * words.END, end)
        store(result + 8 * words.WORK, work)
        store(result + 8 * words.CHECK, check)
        barrier(context)

    return forward
