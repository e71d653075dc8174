"""The cache staircase: read, copy and triad over working sets from the first-level cache to memory."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Sequence
from ctypes import addressof, c_char

from cpu_kernels.probe import words
from edgeawq.profiling.measure.probe import Probe
from edgeawq.profiling.measure.statistics import repeat
from edgeawq.profiling.schema import BandwidthPoint, CacheFacts, MemoryKind

SAMPLE_S = 0.002  # a sample runs over its memory as often as it takes to last this long
BUDGET_S = 0.08  # for one point
SMALLEST_SHARE = 8 << 10  # bytes of one thread
LEAST_ARENA, MOST_ARENA = 64 << 20, 512 << 20
_SKEW = 2112  # bytes between arrays, so that they do not meet in the same sets of the caches
OPERATIONS: dict[MemoryKind, tuple[int, int]] = {  # number of the operation, arrays
    "read": (words.READ, 1),
    "copy": (words.COPY, 2),
    "triad": (words.TRIAD, 3),
}


def choose_arena(caches: Sequence[CacheFacts], available_bytes: int) -> int:
    """Bytes of the largest working set: eight times the largest cache, within reason and a quarter of free memory."""
    largest = max((cache.bytes for cache in caches), default=0)
    wanted = min(max(LEAST_ARENA, 8 * largest), MOST_ARENA)
    return max(min(wanted, available_bytes // 4) >> 20 << 20, 4 << 20)


def list_sizes(threads: int, arena: int, *, fine: bool) -> list[int]:
    """Working sets in all, ascending: powers of two from the smallest share on; fine: with one and a half between."""
    sizes = []
    size = threads * SMALLEST_SHARE
    while size <= arena:
        sizes.append(size)
        if fine and size * 3 // 2 <= arena:
            sizes.append(size * 3 // 2)
        size *= 2
    if sizes and sizes[-1] < arena:
        sizes.append(arena)
    return sizes


def name_level(caches: Sequence[CacheFacts], total: int, threads: int) -> str:
    """The smallest cache that holds what its threads work on; "DRAM" where none does."""
    for cache in caches:
        if total // threads * min(threads, cache.shared_by) <= cache.bytes:
            return f"L{cache.level}"
    return "DRAM"


class Arena:
    """Memory to move about, in huge pages where the system gives them. Use `with`."""

    def __init__(self, size: int) -> None:
        self.size = size
        # room for the skew and for rounding up each of three arrays
        self._memory = mmap.mmap(-1, size + (2 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._first = c_char.from_buffer(self._memory)
        self.address = addressof(self._first)

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        del self._first
        self._memory.close()


def measure_bandwidth(
    probe: Probe, arena: Arena, caches: Sequence[CacheFacts], kinds: Sequence[MemoryKind] = ("read", "copy", "triad")
) -> Iterator[BandwidthPoint]:
    """One point for each kind and size, with the probe's threads."""
    touch_all(probe, arena)
    for kind in kinds:
        for size in list_sizes(probe.n_threads, arena.size, fine=kind == "read"):
            yield measure_point(probe, arena, caches, kind, size)


def touch_all(probe: Probe, arena: Arena) -> None:
    """Write to all of the arena: memory that was never written is one and the same page of zeros."""
    share = _share(arena.size + (1 << 20), 1, probe.n_threads)
    probe.run(words.FILL, a=arena.address, size=share, stride=share)


def measure_point(
    probe: Probe, arena: Arena, caches: Sequence[CacheFacts], kind: MemoryKind, total: int
) -> BandwidthPoint:
    """The rate of one kind of traffic over `total` bytes in all."""
    operation, arrays = OPERATIONS[kind]
    share = _share(total, arrays, probe.n_threads)
    array = share * probe.n_threads + _SKEW
    a = arena.address
    passes = 1

    def sample() -> float:
        run = probe.run(operation, repeats=passes, a=a, b=a + array, c=a + 2 * array, size=share, stride=share)
        return run.work / run.seconds

    first = probe.run(operation, a=a, b=a + array, c=a + 2 * array, size=share, stride=share)
    passes = max(1, min(round(SAMPLE_S / first.seconds), 1_000_000))
    rate = repeat(sample, budget_s=BUDGET_S)
    moved = share * arrays * probe.n_threads
    return BandwidthPoint(kind, probe.n_threads, moved, name_level(caches, moved, probe.n_threads), rate)


def _share(total: int, arrays: int, threads: int) -> int:
    """Bytes of one thread's part of one array."""
    return max(words.BLOCK, total // (arrays * threads) // words.BLOCK * words.BLOCK)
