"""Work shared out over the processor's cores, one single-threaded torch call per thread.

One thread per operation makes results independent of the number of cores (sums are taken in a fixed order), and does
not suffer when other programs use the machine, as torch's own thread pool does (its threads wait for each other after
every operation).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def count_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Workers:
    """A pool of threads in which torch computes single-threaded and without gradients."""

    pool: ThreadPoolExecutor
    count: int
    device: torch.device = torch.device("cpu")  # where they compute

    def run(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """function(item) for every item, in order; the first failure is raised."""

        def run_one(item: Item) -> Result:
            with torch.no_grad():
                return function(item)

        futures = [self.pool.submit(run_one, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            # After a failure or Ctrl-C nothing that still waits is worth starting.
            for future in futures:
                future.cancel()


@contextmanager
def start_workers(count: int = 0, device: torch.device | None = None) -> Iterator[Workers]:
    """Threads for `Workers.run`, with the device that they compute on; count 0 means one per core.

    At the end torch's own setting comes back.
    """
    count = count or count_cores()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(count, "edgeawq-quantize", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield Workers(pool, count, device or torch.device("cpu"))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)
