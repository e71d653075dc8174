"""What is measured, in which order, and how long it may take: a plan that knows the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

DONE = "done"  # the stage after the last one
Amount = Literal["quick", "usual", "thorough"]


@dataclass(frozen=True)
class Budget:
    """How thorough to be. Seconds are for one point of a kind, and aimed at, not promised."""

    phase_s: float
    speed_s: float
    first_token_s: float  # a prompt that takes longer is left out
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    cold_starts: int


BUDGETS: dict[Amount, Budget] = {
    "quick": Budget(1.0, 0.5, 5.0, (64, 1024), (16, 128), 1),
    "usual": Budget(4.0, 2.0, 20.0, (16, 64, 256, 1024, 2048, 4000), (16, 64, 256, 1024), 3),
    "thorough": Budget(
        15.0, 6.0, 120.0, (16, 64, 128, 256, 512, 1024, 2048, 3072, 4000), (16, 64, 256, 512, 1024, 2048), 5
    ),
}


@dataclass(frozen=True)
class Progress:
    """Where a profile is. share: of the whole, 0 … 1."""

    stage: str
    share: float
    seconds_left: float | None  # None until there is something to go by


@dataclass(frozen=True)
class Stage:
    """One stage; expected_s: a first guess, which only the share and the time left go by."""

    name: str
    expected_s: float
    run: Callable[[], None]


def run_stages(
    stages: list[Stage],
    on_progress: Callable[[Progress], None],
    after: Callable[[str], None],
    now: Callable[[], float] = time.monotonic,
) -> bool:
    """Run the stages in order; `after` gets the name of each that has ended. False when the user interrupted."""
    total = sum(stage.expected_s for stage in stages)
    begun, expected = now(), 0.0
    try:  # around all of it: the user may interrupt while the progress is being told, too
        for stage in stages:
            share = expected / total
            # What has been done took its time: the guesses are scaled by it.
            left = None if expected < 0.05 * total else (now() - begun) / expected * (total - expected)
            on_progress(Progress(stage.name, share, left))
            stage.run()
            after(stage.name)
            expected += stage.expected_s
        on_progress(Progress(DONE, 1.0, 0.0))
    except KeyboardInterrupt:
        return False
    return True
