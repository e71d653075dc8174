"""Distributions of repeated measurements."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeawq.profiling.measure.statistics import invert, repeat, scale, summarize

VALUES = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=40)


@given(VALUES)
def test_a_summary_is_the_distribution(values: list[float]) -> None:
    summary = summarize(values)
    assert summary.median == pytest.approx(statistics.median(values))
    assert (summary.minimum, summary.maximum, summary.repetitions) == (min(values), max(values), len(values))
    below = sum(value < summary.lower_quartile for value in values)
    above = sum(value > summary.upper_quartile for value in values)
    assert below <= len(values) / 4 + 1
    assert above <= len(values) / 4 + 1


@given(VALUES, st.floats(1e-6, 1e6))
def test_times_become_rates(values: list[float], amount: float) -> None:
    rates = invert(summarize(values), amount)
    assert rates.minimum == pytest.approx(min(amount / value for value in values))
    assert rates.maximum == pytest.approx(max(amount / value for value in values))
    assert rates.lower_quartile <= rates.median <= rates.upper_quartile


@given(VALUES, st.floats(1e-6, 1e6))
def test_scaling_keeps_the_spread(values: list[float], factor: float) -> None:
    scaled = scale(summarize(values), factor)
    assert scaled.spread == pytest.approx(summarize(values).spread, rel=1e-6, abs=1e-9)
    assert scaled.median == pytest.approx(summarize(values).median * factor)


class Clock:
    def __init__(self, step: float) -> None:
        self.time, self.step = 0.0, step

    def __call__(self) -> float:
        self.time += self.step
        return self.time


def test_steady_values_end_early() -> None:
    taken: list[float] = []

    def sample() -> float:
        taken.append(1.0)
        return 1.0

    assert repeat(sample, budget_s=100, least=5, most=50, warm_up=3, now=Clock(0.1)).repetitions == 5
    assert len(taken) == 8  # three of them to warm up


def test_unsteady_values_are_repeated_until_the_budget_is_used_up() -> None:
    values = iter([1.0, 9.0] * 100)
    found = repeat(lambda: next(values), budget_s=1.0, least=3, most=50, now=Clock(0.1))
    assert 3 < found.repetitions < 50
    assert found.minimum == 1.0 and found.maximum == 9.0  # what was disturbed stays visible


def test_no_more_than_the_most() -> None:
    values = iter([1.0, 9.0] * 100)
    assert repeat(lambda: next(values), budget_s=1e9, least=3, most=7, now=Clock(0.1)).repetitions == 7
