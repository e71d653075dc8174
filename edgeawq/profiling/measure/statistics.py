"""Repeat a measurement until it is steady, and say how it is distributed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edgeawq.profiling.schema import Measurement

STEADY_SPREAD = 0.02  # a spread below this ends the repetitions early


def summarize(values: Sequence[float]) -> Measurement:
    """Median, quartiles and extremes of at least one value; quantiles between two values are interpolated."""
    ordered = sorted(values)
    return Measurement(
        median=_quantile(ordered, 0.5),
        minimum=ordered[0],
        lower_quartile=_quantile(ordered, 0.25),
        upper_quartile=_quantile(ordered, 0.75),
        maximum=ordered[-1],
        repetitions=len(ordered),
    )


def repeat(
    sample: Callable[[], float],
    *,
    budget_s: float,
    least: int = 5,
    most: int = 25,
    warm_up: int = 1,
    now: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Take `least` samples, and more until they are steady, `most` are taken or `budget_s` is used up.

    The first `warm_up` samples are thrown away.
    """
    for _ in range(warm_up):
        sample()
    start = now()
    values: list[float] = []
    while len(values) < most:
        values.append(sample())
        if len(values) < least:
            continue
        if now() - start > budget_s or summarize(values).spread < STEADY_SPREAD:
            break
    return summarize(values)


def invert(measurement: Measurement, numerator: float) -> Measurement:
    """The distribution of numerator / value: times become rates. Values must be positive."""
    return Measurement(
        median=numerator / measurement.median,
        minimum=numerator / measurement.maximum,
        lower_quartile=numerator / measurement.upper_quartile,
        upper_quartile=numerator / measurement.lower_quartile,
        maximum=numerator / measurement.minimum,
        repetitions=measurement.repetitions,
    )


def scale(measurement: Measurement, factor: float) -> Measurement:
    """The distribution of value · factor, for a positive factor."""
    return Measurement(
        median=measurement.median * factor,
        minimum=measurement.minimum * factor,
        lower_quartile=measurement.lower_quartile * factor,
        upper_quartile=measurement.upper_quartile * factor,
        maximum=measurement.maximum * factor,
        repetitions=measurement.repetitions,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    # written so that rounding cannot leave the interval of the two neighbours
    value = ordered[below] + (ordered[above] - ordered[below]) * (place - below)
    return min(max(value, ordered[below]), ordered[above])
