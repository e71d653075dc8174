"""The choice of how many threads take part, against a machine that is only arithmetic."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from edgeawq.runtime.give_way import FIRST_WAIT_S, LONGEST_WAIT_S, WINDOW_S, ThreadGovernor, make_delay_reader


@dataclass
class Machine:
    """Cores that all turn equally fast; a step meets often enough that it is as slow as its slowest thread."""

    n_cores: int
    alone_s: float  # of a step with one thread
    tells_delay: bool = True
    busy_cores: int = 0
    delay: float = 0.0
    rng: np.random.Generator = field(default_factory=np.random.default_rng)

    def step(self, n_threads: int) -> float:
        seconds = self.alone_s / n_threads
        if n_threads > self.n_cores - self.busy_cores:
            seconds *= 2.5  # the meetings cost more than the half core that is missing
            self.delay += seconds / 2
        return seconds * self.rng.uniform(0.95, 1.05)

    def read_delay(self) -> float | None:
        return self.delay if self.tells_delay else None


def run_for(governor: ThreadGovernor, machine: Machine, seconds: float) -> tuple[float, list[int]]:
    """Steps for so long: (steps/s, the numbers of threads they had)."""
    passed, used = 0.0, []
    while passed < seconds:
        used.append(governor.n_active)
        step = machine.step(governor.n_active)
        governor.note(step)
        passed += step
    return len(used) / passed, used


def start(machine: Machine, n_threads: int) -> ThreadGovernor:
    return ThreadGovernor(n_threads, machine.read_delay)


@pytest.mark.parametrize("alone_s", [0.004, 0.08, 0.6])
@pytest.mark.parametrize("n_cores", [2, 4])
def test_a_quiet_machine_keeps_all_its_threads(n_cores, alone_s):
    machine = Machine(n_cores, alone_s)
    governor = start(machine, n_cores)
    _, used = run_for(governor, machine, 20)
    assert set(used) == {n_cores}
    assert governor.n_steps_fewer == 0


@pytest.mark.parametrize("alone_s", [0.004, 0.08, 0.6])
@pytest.mark.parametrize("n_cores", [2, 4])
def test_a_busy_core_is_left_alone_and_taken_back(n_cores, alone_s):
    machine = Machine(n_cores, alone_s, busy_cores=1)
    governor = start(machine, n_cores)
    run_for(governor, machine, 3 * WINDOW_S + 6 * alone_s)
    speed, used = run_for(governor, machine, 30)
    ideal = (n_cores - 1) / alone_s
    assert speed > 0.85 * ideal
    assert governor.n_steps_fewer >= used.count(n_cores - 1) > 0.8 * len(used)

    machine.busy_cores = 0
    run_for(governor, machine, LONGEST_WAIT_S + 2 * WINDOW_S + 6 * alone_s)
    _, used = run_for(governor, machine, 10)
    assert set(used) == {n_cores}


def test_two_busy_cores_of_four():
    machine = Machine(4, 0.02, busy_cores=2)
    governor = start(machine, 4)
    run_for(governor, machine, 6 * FIRST_WAIT_S)
    _, used = run_for(governor, machine, 30)
    assert used.count(2) > 0.8 * len(used)


def test_a_slowdown_shows_where_the_system_does_not_tell_why():
    machine = Machine(2, 0.01, tells_delay=False)
    governor = start(machine, 2)
    run_for(governor, machine, 2)
    machine.busy_cores = 1
    run_for(governor, machine, 1)
    _, used = run_for(governor, machine, 20)
    assert used.count(1) > 0.8 * len(used)


def test_fewer_threads_are_given_up_where_they_do_not_help():
    """Delays that cost all numbers of threads the same: attempts become rare."""
    machine = Machine(4, 0.01)
    governor = ThreadGovernor(4, machine.read_delay)
    used = []
    for _ in range(20_000):
        used.append(governor.n_active)
        machine.delay += 0.002
        governor.note(machine.step(governor.n_active))
    assert 0.95 * len(used) < used.count(4) < len(used)


def test_one_thread_has_nothing_to_choose():
    def refuse() -> float:
        raise AssertionError("the delay was read")

    governor = ThreadGovernor(1, refuse)
    for _ in range(200):
        governor.note(0.01)
    assert governor.n_active == 1


def test_the_delay_is_what_the_kernel_counts():
    """A thread that shares its core with another process waits for it about half of the time."""
    cpu = min(os.sched_getaffinity(0))
    found: list[float | None] = []

    def work() -> None:
        os.sched_setaffinity(0, {cpu})
        read_delay = make_delay_reader([])
        with subprocess.Popen(
            [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"]
        ) as rival:
            try:
                first = read_delay()
                if first is None:
                    found.append(None)
                    return
                end = time.monotonic() + 60
                while (now := read_delay() or 0.0) - first < 0.1 and time.monotonic() < end:
                    pass
                found.append(now - first)
            finally:
                rival.kill()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if found[0] is None:
        pytest.skip("this kernel keeps no schedstat")
    assert found[0] >= 0.1


def test_a_thread_that_is_gone_gives_no_delay():
    assert make_delay_reader([2**30])() is None
