"""Which CPUs to run on: lists as people write them, and the fast cores of a CPU with two kinds."""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgeawq.errors import UsageError

CPU_FOLDER = Path("/sys/devices/system/cpu")
MAX_CPU = 4095
_PART = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


def parse_cpu_list(text: str) -> frozenset[int]:
    """CPU numbers of "0,2" or "0-3" or both; UsageError for anything else."""
    cpus: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= MAX_CPU:
            raise UsageError(f"{text!r} is no list of CPUs", remedy="write numbers and ranges, such as 0,1 or 0-3")
        cpus.update(range(first, last + 1))
    return frozenset(cpus)


def use_cpus(cpus: frozenset[int]) -> None:
    """Run this thread, and those it starts from now on, on `cpus` only; UsageError when one is not available."""
    available = os.sched_getaffinity(0)
    missing = sorted(cpus - available)
    if missing:
        raise UsageError(
            f"this process may not use CPU {', '.join(map(str, missing))}",
            remedy=f"choose among {', '.join(map(str, sorted(available)))}",
        )
    os.sched_setaffinity(0, cpus)


def rank_cpus(cpus: frozenset[int], folder: Path = CPU_FOLDER) -> list[int]:
    """The CPUs, fastest first, by the kernel's capacity or the highest clock; by number where it tells neither."""
    return sorted(cpus, key=lambda cpu: (-_read_speed(folder / f"cpu{cpu}"), cpu))


def choose_cpus(n_threads: int, cpus: frozenset[int], folder: Path = CPU_FOLDER) -> frozenset[int]:
    """Where `n_threads` threads should run: the fastest cores where they differ, otherwise wherever the kernel likes.

    One slow core would hold up all others: they share the rows of each matrix equally.
    """
    ranked = rank_cpus(cpus, folder)
    speeds = {_read_speed(folder / f"cpu{cpu}") for cpu in ranked}
    return frozenset(ranked[:n_threads]) if len(speeds) > 1 and n_threads < len(ranked) else cpus


def _read_speed(folder: Path) -> int:
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        try:
            return int((folder / name).read_text())
        except (OSError, ValueError):
            continue
    return 0
