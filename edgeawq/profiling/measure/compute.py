"""What the cores can do in registers: clock under load, peaks of arithmetic, and how long threads take to meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from cpu_kernels.probe import words
from edgeawq.errors import KernelError
from edgeawq.profiling.measure.probe import Probe
from edgeawq.profiling.measure.statistics import repeat
from edgeawq.profiling.schema import BarrierPoint, ClockPoint, ComputeKind, ComputePoint, Unavailable

SAMPLE_S = 0.004
CLOCK_SAMPLE_S = 0.001  # shorter than a time slice: most samples are not interrupted
BUDGET_S = 0.15
BARRIER_MEETINGS = 500
OPERATIONS: dict[ComputeKind, int] = {
    "fp32": words.FP32,
    "fp16": words.FP16,
    "int8_nibbles": words.INT8_NIBBLES,
    "int8_bytes": words.INT8_BYTES,
}
_TABLE_BYTES = (words.WEIGHT_REGISTERS + 4) * 64  # for the widest registers


def measure_clock(probe: Probe) -> ClockPoint:
    """Cycles per second of the slowest thread while all are busy."""

    def sample(repeats: int) -> tuple[float, float]:
        # Values that LLVM cannot know and that make no pattern.
        run = probe.run(words.CHAIN, repeats=repeats, a=0x5DEECE66D, b=0x2545F4914F6CDD1D)
        return run.slowest_rate, run.seconds

    repeats = _choose_repeats(lambda count: sample(count)[1], CLOCK_SAMPLE_S)
    hertz = repeat(lambda: sample(repeats)[0], budget_s=BUDGET_S, least=15, most=60, warm_up=4)
    return ClockPoint(probe.n_threads, hertz)


def measure_compute(probe: Probe, isa: str, hertz: float | None) -> Iterator[ComputePoint | Unavailable]:
    """The peak of each kind of arithmetic that this CPU's object has. hertz: the highest clock with as many threads."""
    table = _make_table(probe.n_threads)
    for kind, operation in OPERATIONS.items():
        try:
            yield _measure_peak(probe, isa, kind, operation, int(table.ctypes.data), hertz)
        except KernelError:
            yield Unavailable(kind, f"{isa} has no such arithmetic")


def measure_barrier(probe: Probe) -> BarrierPoint:
    """How long the threads take to meet, when all arrive at once."""

    def sample() -> float:
        run = probe.run(words.BARRIER, repeats=BARRIER_MEETINGS)
        return 1 / run.slowest_rate

    return BarrierPoint(probe.n_threads, repeat(sample, budget_s=BUDGET_S, least=9, warm_up=2))


def _measure_peak(
    probe: Probe, isa: str, kind: ComputeKind, operation: int, table: int, hertz: float | None
) -> ComputePoint:
    def run(repeats: int) -> tuple[float, float]:
        result = probe.run(operation, repeats=repeats, a=table, stride=_TABLE_BYTES)
        return result.work / result.seconds, result.seconds

    repeats = _choose_repeats(lambda count: run(count)[1], SAMPLE_S)
    rate = repeat(lambda: run(repeats)[0], budget_s=BUDGET_S, warm_up=2)
    # What disturbs the machine only lowers rate and clock: both at their best belong together.
    per_cycle = rate.maximum / (hertz * probe.n_threads) if hertz else None
    return ComputePoint(kind, isa, probe.n_threads, rate, per_cycle)


def _choose_repeats(seconds_of: Callable[[int], float], wanted_s: float) -> int:
    """Rounds that take about as long as wanted."""
    repeats = 1000
    while True:
        seconds = min(seconds_of(repeats), seconds_of(repeats))
        if seconds > wanted_s / 10 or repeats > 1 << 30:
            return max(1, round(repeats * wanted_s / seconds))
        repeats *= 8


def _make_table(n_threads: int) -> np.ndarray:
    """Weights in 0 … 15 and signed activations for each thread, from a cache line on."""
    rng = np.random.default_rng(0)
    memory = rng.integers(0, 16, n_threads * _TABLE_BYTES + 64, dtype=np.uint8)
    start = -int(memory.ctypes.data) % 64
    return memory[start : start + n_threads * _TABLE_BYTES]
