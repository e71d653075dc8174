"""CPU lists, and the fast half of a CPU with two kinds of cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeawq.errors import UsageError
from edgeawq.runtime.placement import choose_cpus, parse_cpu_list, rank_cpus, use_cpus


@pytest.mark.parametrize(
    "text, cpus", [("0", {0}), ("0,1", {0, 1}), ("0-3", {0, 1, 2, 3}), (" 7, 2-3 ", {2, 3, 7}), ("1,1-1", {1})]
)
def test_lists(text: str, cpus: set[int]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,", "-1", "0-99999", "1;2", "²"])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(UsageError, match="no list of CPUs"):
        parse_cpu_list(text)


def make_cpus(folder: Path, file: str, speeds: list[int]) -> Path:
    for cpu, speed in enumerate(speeds):
        path = folder / f"cpu{cpu}" / file
        path.parent.mkdir(parents=True)
        path.write_text(f"{speed}\n")
    return folder


@pytest.mark.parametrize("file", ["cpu_capacity", "cpufreq/cpuinfo_max_freq"])
def test_the_fast_cores_come_first(tmp_path: Path, file: str) -> None:
    folder = make_cpus(tmp_path, file, [400, 400, 1024, 1024, 800])
    everything = frozenset(range(5))
    assert rank_cpus(everything, folder) == [2, 3, 4, 0, 1]
    assert choose_cpus(2, everything, folder) == {2, 3}
    assert choose_cpus(3, everything, folder) == {2, 3, 4}
    assert choose_cpus(5, everything, folder) == everything
    assert choose_cpus(1, frozenset({0, 4}), folder) == {4}


def test_equal_cores_are_left_to_the_kernel(tmp_path: Path) -> None:
    everything = frozenset(range(4))
    assert choose_cpus(2, everything, make_cpus(tmp_path, "cpu_capacity", [1024] * 4)) == everything
    assert choose_cpus(2, everything, tmp_path / "nothing") == everything


def test_threads_that_start_later_stay_there() -> None:
    """In a process of its own, for it changes where that runs."""
    cpu = min(os.sched_getaffinity(0))
    script = f"""
import os, threading
from edgeawq.runtime.placement import use_cpus
use_cpus(frozenset({{{cpu}}}))
seen = []
thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
thread.start(); thread.join()
assert seen == [{{{cpu}}}], seen
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)


def test_a_cpu_that_is_not_there() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(UsageError, match="may not use CPU 4000") as caught:
        use_cpus(frozenset({min(before), 4000}))
    assert str(min(before)) in caught.value.remedy
    assert os.sched_getaffinity(0) == before
