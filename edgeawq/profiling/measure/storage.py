"""How fast pages come: zeroed ones from the system, mapped ones from the page cache, and bytes from the storage."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import time
from collections.abc import Callable
from ctypes import CDLL, addressof, c_char, c_size_t, c_void_p
from pathlib import Path

from cpu_kernels.probe import words
from edgeawq.profiling.measure.probe import Probe
from edgeawq.profiling.measure.statistics import invert, repeat, scale
from edgeawq.profiling.schema import Measurement, PagePoint, StoragePoint

PAGES_BYTES = 64 << 20
BLOCK_BYTES = 1 << 20
MOST_BYTES = 256 << 20  # read from the storage in one repetition
BUDGET_S = 3.0
CACHED_SHARE = 0.05  # of the pages may be in the page cache for a figure to be the storage's


def measure_zeroed(probe: Probe, available_bytes: int) -> PagePoint:
    """First touch of anonymous memory, page by page, one thread (the probe should have one)."""
    size = min(PAGES_BYTES, max(available_bytes // 8, 1 << 20)) // mmap.PAGESIZE * mmap.PAGESIZE

    def sample() -> float:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            if hasattr(mmap, "MADV_NOHUGEPAGE"):
                with contextlib.suppress(OSError):  # a kernel without huge pages
                    memory.madvise(mmap.MADV_NOHUGEPAGE)
            first = c_char.from_buffer(memory)
            seconds = probe.run(words.TOUCH_WRITE, a=addressof(first), size=size, stride=mmap.PAGESIZE).seconds
            del first
            return seconds
        finally:
            memory.close()

    return _describe("zeroed", size, sample)


def measure_mapped(probe: Probe, path: Path) -> PagePoint:
    """First touch of a mapped file whose content is in the page cache, one thread."""
    with path.open("rb") as file:
        size = min(PAGES_BYTES, os.fstat(file.fileno()).st_size) // mmap.PAGESIZE * mmap.PAGESIZE
        _read_all(file.fileno(), size)

        def sample() -> float:
            # A private mapping, which ctypes may take the address of; nothing is written to it.
            memory = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            try:
                first = c_char.from_buffer(memory)
                seconds = probe.run(words.TOUCH_READ, a=addressof(first), size=size, stride=mmap.PAGESIZE).seconds
                del first
                return seconds
            finally:
                memory.close()

        return _describe("mapped", size, sample)


def measure_storage(path: Path, *, now: Callable[[], float] = time.perf_counter) -> StoragePoint:
    """Read a file in order, past the page cache where the system lets us."""
    size = min(path.stat().st_size, MOST_BYTES) // BLOCK_BYTES * BLOCK_BYTES or path.stat().st_size
    with mmap.mmap(-1, BLOCK_BYTES) as buffer:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
        else:
            try:
                # Some file systems open a file so and then refuse to read it.
                with contextlib.suppress(OSError):
                    rate = _repeat_read(lambda: _time_read(descriptor, size, buffer, now), size)
                    return StoragePoint("direct", True, size, BLOCK_BYTES, rate)
            finally:
                os.close(descriptor)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            bypassed = drop_cached(descriptor)

            def sample() -> float:
                nonlocal bypassed
                bypassed = drop_cached(descriptor) and bypassed
                return _time_read(descriptor, size, buffer, now)

            rate = _repeat_read(sample, size)
        finally:
            os.close(descriptor)
        return StoragePoint("fadvise" if bypassed else "cached", bypassed, size, BLOCK_BYTES, rate)


def drop_cached(descriptor: int) -> bool:
    """Ask the system to forget a file's pages; True when (nearly) none of them is in memory afterwards."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return cached_share(descriptor) <= CACHED_SHARE


def cached_share(descriptor: int) -> float:
    """Share of a file's pages in the page cache, by mincore, which reads nothing; 1 where the system does not tell."""
    size = os.fstat(descriptor).st_size
    pages = -(-size // mmap.PAGESIZE)
    if not pages:
        return 0.0
    states = bytearray(pages)
    # A private mapping, which ctypes may take the address of; nothing is written to it.
    with mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as memory:
        first, vector = c_char.from_buffer(memory), c_char.from_buffer(states)
        library = CDLL(None, use_errno=True)
        failed = library.mincore(c_void_p(addressof(first)), c_size_t(size), c_void_p(addressof(vector)))
        del first, vector
    return 1.0 if failed else sum(state & 1 for state in states) / pages


def _repeat_read(sample: Callable[[], float], size: int) -> Measurement:
    return invert(repeat(sample, budget_s=BUDGET_S, least=3, most=9, warm_up=0), size)


def _describe(kind: str, size: int, sample: Callable[[], float]) -> PagePoint:
    seconds = repeat(sample, budget_s=0.5, least=5, most=15)
    pages = size // mmap.PAGESIZE
    return PagePoint(kind, size, scale(seconds, 1 / pages), invert(seconds, size))  # type: ignore[arg-type]


def _time_read(descriptor: int, size: int, buffer: mmap.mmap, now: Callable[[], float]) -> float:
    start = now()
    _read_all(descriptor, size, buffer)
    return now() - start


def _read_all(descriptor: int, size: int, buffer: mmap.mmap | None = None) -> None:
    if buffer is None:
        with mmap.mmap(-1, BLOCK_BYTES) as own:
            return _read_all(descriptor, size, own)
    done = 0
    while done < size:
        count = os.preadv(descriptor, [buffer], done)
        if count <= 0:
            raise OSError(errno.EIO, "the file ended early")
        done += count
    return None
