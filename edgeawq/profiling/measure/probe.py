"""The probe object at work: threads that run one small loop together, and how long it took each of them."""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from cpu_kernels import abi
from cpu_kernels.probe import words
from edgeawq.errors import KernelError
from edgeawq.runtime.decoder_memory import SPIN_LIMIT
from edgeawq.runtime.native import Function, NativeObject

CALIBRATION_S = 0.03


@dataclass(frozen=True)
class ProbeRun:
    """One run of an operation by all threads. work: what they did together, in the operation's unit."""

    work: int
    seconds: float  # from the first thread's start to the last one's end
    slowest_rate: float  # work per second of the slowest thread


class Probe:
    """The probe object with its threads. Not safe for use from several threads at once."""

    def __init__(self, native: NativeObject, n_threads: int) -> None:
        """Start the threads; they sleep between runs. Use `with`."""
        self.n_threads = n_threads
        self._context = _aligned_zeros(words.PROBE_WORDS)
        self._sync = _aligned_zeros(-(-abi.SYNC_WORDS // 2))  # int32 words
        self._results = _aligned_zeros(n_threads * words.RESULT_WORDS).reshape(n_threads, words.RESULT_WORDS)
        self._context[abi.N_THREADS] = n_threads
        self._context[abi.SYNC] = self._sync.ctypes.data
        self._context[abi.SPIN_LIMIT] = SPIN_LIMIT
        self._context[words.RESULTS] = self._results.ctypes.data
        self._step = native.function("edgeawq_probe_step", 1)
        serve, stop = native.function("edgeawq_probe_serve", 2), native.function("edgeawq_stop", 1)
        address = int(self._context.ctypes.data)
        keep = (native, self._context, self._sync, self._results)
        threads = [
            threading.Thread(target=_serve, args=(serve, address, thread, keep), daemon=True)
            for thread in range(1, n_threads)
        ]
        for thread in threads:
            thread.start()
        self._finalizer = weakref.finalize(self, _stop, stop, address, threads, keep)
        self.ticks_per_s = self._calibrate()

    def run(
        self,
        operation: int,
        *,
        repeats: int = 1,
        a: int = 0,
        b: int = 0,
        c: int = 0,
        size: int = 0,
        stride: int = 0,
    ) -> ProbeRun:
        """Run an operation of `cpu_kernels.probe.words` once. a, b, c: addresses; size, stride: bytes.

        Raises KernelError where this CPU's object has no such operation.
        """
        context = self._context
        context[words.OPERATION], context[words.REPEATS] = operation, repeats
        context[words.A], context[words.B], context[words.C] = a, b, c
        context[words.BYTES], context[words.STRIDE] = size, stride
        self._step(int(context.ctypes.data))
        if not self._results[:, words.WORK].all():
            raise KernelError(f"the probe of this CPU has no operation {operation}", remedy="leave it out")
        start, end = self._results[:, words.START], self._results[:, words.END]
        rates = self._results[:, words.WORK] / np.maximum(end - start, 1)
        return ProbeRun(
            work=int(self._results[:, words.WORK].sum()),
            seconds=max(int(end.max() - start.min()), 1) / self.ticks_per_s,
            slowest_rate=float(rates.min()) * self.ticks_per_s,
        )

    def checks(self) -> list[int]:
        """What the loops of the last run computed, by thread."""
        return [int(value) for value in self._results[:, words.CHECK]]

    def close(self) -> None:
        """Stop the threads."""
        self._finalizer()

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _calibrate(self) -> float:
        """Ticks of the CPU's counter in a second, compared with Python's clock."""
        first, begun = self._read_counter()
        time.sleep(CALIBRATION_S)
        last, ended = self._read_counter()
        return (last - first) / (ended - begun)

    def _read_counter(self) -> tuple[int, float]:
        best = (0, 0.0, float("inf"))
        self._context[words.OPERATION] = words.COUNTER
        for _ in range(8):  # the reading that was interrupted least
            before = time.perf_counter()
            self._step(int(self._context.ctypes.data))
            after = time.perf_counter()
            if after - before < best[2]:
                best = (int(self._results[0, words.START]), (before + after) / 2, after - before)
        return best[0], best[1]


def _aligned_zeros(count: int) -> npt.NDArray[np.int64]:
    """int64 [count] that starts on a cache line."""
    memory = np.zeros(count + 8, np.int64)
    start = -int(memory.ctypes.data) % 64 // 8
    return memory[start : start + count]


def _serve(serve: Function, context: int, thread: int, keep: object) -> None:
    serve(context, thread)


def _stop(stop: Function, context: int, threads: list[threading.Thread], keep: object) -> None:
    if threads:
        stop(context)
    for thread in threads:
        thread.join()
