"""Which of torch's devices do the work, and one job at a time on each of several.

Activations, finished blocks and everything that is written stay in main memory; a device holds one block, its
statistics and a few sequences.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from edgeawq.errors import UsageError
from edgeawq.quantize.cluster import Cluster

Result = TypeVar("Result")

AUTO = "auto"
POSSIBLE = "give auto, cpu, cuda, or names such as cuda:0,cuda:1"
CPU = torch.device("cpu")
# On an accelerator one thread computes while another moves its sequence; more would only fill its memory.
ACCELERATOR_THREADS = 2


def choose_devices(wanted: str) -> tuple[torch.device, ...]:
    """The devices that `wanted` names, as this torch sees them.

    "auto": every CUDA device, or the processor where there is none; "cpu"; "cuda": every CUDA device; "cuda:1", or
    several such names with commas. Raises UsageError for a device that is not there.
    """
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    every = tuple(torch.device("cuda", number) for number in range(n_cuda))
    if wanted == AUTO:
        return every or (CPU,)
    if wanted == "cuda" and every:
        return every
    return tuple(dict.fromkeys(find_device(name.strip(), every) for name in wanted.split(",")))


def find_device(name: str, every: tuple[torch.device, ...]) -> torch.device:
    """One device by its name; `every`: the CUDA devices there are."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is no device", remedy=POSSIBLE) from error
    if device == CPU:
        return CPU
    if device.type != "cuda":
        raise UsageError(f"the device {name!r} is not supported", remedy=POSSIBLE)
    if device not in every:
        there = ", ".join(map(str, every)) or "none"
        raise UsageError(
            f"there is no device {name!r}: the CUDA devices that torch sees are {there}",
            remedy="leave --device out, or install a torch with CUDA (https://pytorch.org/get-started)",
        )
    return device


def count_threads(n_threads: int, device: torch.device) -> int:
    """Threads that work on a device; 0, one per core, where it is the processor and nothing was asked for."""
    return n_threads if n_threads or device == CPU else ACCELERATOR_THREADS


class DeviceExecutor(Executor):
    """Runs functions on several devices: each call gets the keyword `device`, one that no other call is using."""

    def __init__(self, devices: tuple[torch.device, ...]) -> None:
        self._free: queue.SimpleQueue[torch.device] = queue.SimpleQueue()
        for device in devices:
            self._free.put(device)
        self._pool = ThreadPoolExecutor(len(devices), "edgeawq-device")

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Run fn(*args, device=…, **kwargs) where a device is free."""

        def run() -> Result:
            device = self._free.get()
            try:
                return fn(*args, device=device, **kwargs)
            finally:
                self._free.put(device)

        return self._pool.submit(run)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let running calls end."""
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)


@contextmanager
def start_devices(devices: tuple[torch.device, ...]) -> Iterator[Cluster | None]:
    """Blocks side by side on several devices; None for one, which needs no help."""
    if len(devices) == 1:
        yield None
        return
    executor = DeviceExecutor(devices)
    try:
        yield Cluster(executor, len(devices))
    finally:
        executor.shutdown(cancel_futures=True)
