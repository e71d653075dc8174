"""Fewer threads while another program needs a core, and all of them again when it is gone.

The threads of a step meet some hundred times a token. When another program takes turns with one of them on its core,
all wait for that one at each meeting, and two threads end up slower than one. Nobody can tell beforehand: the same
slowdown comes from another virtual machine on the core or from a hot one. So fewer threads are tried when something is
in the way, kept while they are the faster choice, and more are tried again after a while.

The answers do not depend on it: a token's logits have the same bits with any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

# Speeds are compared over windows, which are longer than the kernel's turns of some milliseconds.
WINDOW_S = 0.05
# Of a window: so long one of the threads was ready to run and had no core …
HELD_UP_SHARE = 0.2
# … or so much slower than the best window lately was the whole.
HELD_UP_SLOWDOWN = 1.4
FORGET = 1.02  # a window; steps become longer as the context fills
CLEAR_GAIN = 1.05  # fewer threads are kept when they are faster by this
# Until the next attempt, in seconds: doubled each time one changes nothing.
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 8.0


@dataclass
class ThreadGovernor:
    """Chooses how many of `n_threads` take part in the next step of one token.

    read_delay() → seconds that the threads have waited for a core so far, together; None where the system does not say.
    """

    n_threads: int
    read_delay: Callable[[], float | None]
    n_active: int = field(init=False)
    n_steps_fewer: int = field(init=False, default=0)  # steps that ran with fewer threads than there are

    def __post_init__(self) -> None:
        self.n_active = self.n_threads
        self._start_window()
        self._best = float("inf")  # seconds a step, of windows with all threads
        self._rival: tuple[int, float] | None = None  # while a number is on trial: the one before, its seconds a step
        self._fewer_by = 1  # what the next attempt with fewer threads leaves out: one more after each that was no gain
        self._wait_s = FIRST_WAIT_S
        self._since_s = FIRST_WAIT_S  # since the last trial: the first may begin at once

    def note(self, seconds: float) -> None:
        """A step of one token took so long with `n_active` threads."""
        self.n_steps_fewer += self.n_active < self.n_threads
        self._seconds += seconds
        self._steps += 1
        if self._seconds >= WINDOW_S:
            per_step = self._seconds / self._steps
            self._since_s += self._seconds
            self._judge(per_step, self._window_delay())
            self._start_window()

    def _start_window(self) -> None:
        self._seconds, self._steps = 0.0, 0
        self._delay = self.read_delay() if self.n_threads > 1 else None

    def _window_delay(self) -> float:
        """The share of the window in which a thread had no core; 0 where that is not known."""
        now = self.read_delay() if self.n_threads > 1 else None
        return 0.0 if now is None or self._delay is None else max(0.0, now - self._delay) / self._seconds

    def _judge(self, per_step: float, delay: float) -> None:
        if self._rival is not None:
            self._end_trial(per_step)
            return
        held_up = delay > HELD_UP_SHARE
        if self.n_active == self.n_threads:
            held_up |= per_step > HELD_UP_SLOWDOWN * self._best
            self._best = min(per_step, self._best * FORGET)
        if self._since_s < self._wait_s:
            return
        if held_up and self.n_active > 1:
            self._try(max(1, self.n_active - self._fewer_by), per_step)
        elif self.n_active < self.n_threads:
            self._try(self.n_active + 1, per_step)

    def _try(self, n_active: int, per_step: float) -> None:
        self._rival = (self.n_active, per_step)
        self.n_active = n_active

    def _end_trial(self, per_step: float) -> None:
        assert self._rival is not None
        before, rival_per_step = self._rival
        fewer = self.n_active < before
        self._rival, self._since_s = None, 0.0
        if per_step * (CLEAR_GAIN if fewer else 1 / CLEAR_GAIN) <= rival_per_step:
            self._wait_s, self._fewer_by = FIRST_WAIT_S, 1
            return
        if fewer:
            self._fewer_by = 1 if self.n_active == 1 else self._fewer_by + 1
        self.n_active = before
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)


def make_delay_reader(thread_ids: Iterable[int]) -> Callable[[], float | None]:
    """read_delay() over the threads of this process with these native ids, and the one that calls it.

    Linux keeps the figure, in nanoseconds, as the second number of a thread's schedstat file.
    """
    paths = [Path(f"/proc/self/task/{thread_id}/schedstat") for thread_id in thread_ids]
    paths.append(Path("/proc/thread-self/schedstat"))

    def read_delay() -> float | None:
        try:
            return sum(int(path.read_bytes().split()[1]) for path in paths) / 1e9
        except (OSError, ValueError, IndexError):
            return None  # the slowdown itself still shows

    return read_delay
