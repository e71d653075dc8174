"""Stages in order, with the time left; Ctrl-C ends them early."""

from __future__ import annotations

from edgeawq.profiling.measure.plan import BUDGETS, Progress, Stage, run_stages


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_the_time_left_goes_by_what_was_done() -> None:
    clock, ran, seen = Clock(), [], []

    def stage(name: str, expected_s: float, real_s: float) -> Stage:
        def run() -> None:
            clock.seconds += real_s
            ran.append(name)

        return Stage(name, expected_s, run)

    stages = [stage("a", 1, 2), stage("b", 2, 4), stage("c", 1, 2)]
    ended: list[str] = []
    assert run_stages(stages, seen.append, ended.append, now=clock)
    assert ran == ended == ["a", "b", "c"]
    assert seen == [
        Progress("a", 0.0, None),
        Progress("b", 0.25, 6.0),  # twice as slow as was thought
        Progress("c", 0.75, 2.0),
        Progress("done", 1.0, 0.0),
    ]


def test_ctrl_c_keeps_what_is_there() -> None:
    ran = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    stages = [Stage("a", 1, lambda: ran.append("a")), Stage("b", 1, interrupt), Stage("c", 1, lambda: ran.append("c"))]
    ended: list[str] = []
    assert not run_stages(stages, lambda progress: None, ended.append)
    assert ran == ended == ["a"]


def test_ctrl_c_may_come_while_the_progress_is_told() -> None:
    ran = []

    def tell(progress: Progress) -> None:
        if progress.stage == "b":
            raise KeyboardInterrupt

    assert not run_stages([Stage(name, 1, lambda: ran.append("x")) for name in "ab"], tell, lambda stage: None)
    assert ran == ["x"]


def test_more_thorough_is_more() -> None:
    quick, usual, thorough = (BUDGETS[amount] for amount in ("quick", "usual", "thorough"))
    assert len(quick.contexts) < len(usual.contexts) < len(thorough.contexts)
    assert quick.phase_s < usual.phase_s < thorough.phase_s
