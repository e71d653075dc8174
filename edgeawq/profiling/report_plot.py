"""A roofline drawn with characters: both axes logarithmic, roofs as lines, operations as letters."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from device_profiles.roofline import attainable_flop_per_s
from edgeawq.profiling.schema import PhasePoint, Profile

WIDTH, HEIGHT = 66, 16
NEGLIGIBLE = 0.002  # of a step: such an operation would only stretch the plot
LABELS = string.ascii_uppercase


@dataclass(frozen=True)
class PlotPoint:
    """One operation: intensity in operations per byte, rate in operations per second."""

    name: str
    ops_per_byte: float
    ops_per_second: float


@dataclass(frozen=True)
class RooflinePlot:
    """The drawing, and which letter stands for which points (several where they fall on each other)."""

    lines: tuple[str, ...]
    legend: tuple[tuple[str, str], ...]  # (letter, names)


def list_points(phase: PhasePoint | None) -> list[PlotPoint]:
    """The operations of a phase that have bytes and operations, and take time worth showing."""
    if phase is None:
        return []
    return [
        PlotPoint(op.kind, op.ops_per_byte, op.ops_per_second)
        for op in phase.operations
        if op.ops_per_byte and op.ops_per_second and op.share_of_step >= NEGLIGIBLE
    ]


def draw_profile(profile: Profile, phase: PhasePoint | None, width: int = WIDTH, height: int = HEIGHT) -> RooflinePlot:
    """The roofline of a measured profile with one phase's operations; no lines without roofs."""
    memory = [(r.name, r.bytes_per_second) for r in profile.roofs if r.kind == "memory" and r.bytes_per_second]
    compute = [(r.name, r.ops_per_second) for r in profile.roofs if r.kind == "compute" and r.ops_per_second]
    return draw_roofline(memory, compute, list_points(phase), width, height)


def draw_roofline(
    memory: Sequence[tuple[str, float]],
    compute: Sequence[tuple[str, float]],
    points: Sequence[PlotPoint],
    width: int = WIDTH,
    height: int = HEIGHT,
) -> RooflinePlot:
    """Draw roofs of memory (bytes per second) and arithmetic (operations per second) and the points below them.

    Each memory roof rises to the highest compute roof; each compute roof runs from where the fastest memory feeds it.
    """
    if not memory or not compute:
        return RooflinePlot((), ())
    peak, slowest = max(rate for _, rate in compute), min(rate for _, rate in memory)
    fastest = max(rate for _, rate in memory)
    intensities = [point.ops_per_byte for point in points] + [peak / slowest]
    x_low, x_high = math.log10(min(intensities + [0.5]) * 0.8), math.log10(max(intensities) * 4)
    rates = [point.ops_per_second for point in points] + [slowest * 10**x_low]
    y_low, y_high = math.log10(min(rates) * 0.7), math.log10(max([peak, *rates]) * 1.5)
    grid = [[" "] * width for _ in range(height)]

    def row_of(rate: float) -> int:
        return height - 1 - round((math.log10(rate) - y_low) / (y_high - y_low) * (height - 1))

    def column_of(intensity: float) -> int:
        return round((math.log10(intensity) - x_low) / (x_high - x_low) * (width - 1))

    for _, rate in compute:
        for column in range(width):
            intensity = 10 ** (x_low + column / (width - 1) * (x_high - x_low))
            if rate <= fastest * intensity:
                _put(grid, row_of(rate), column, "─")
    for _, bandwidth in memory:
        for column in range(width):
            intensity = 10 ** (x_low + column / (width - 1) * (x_high - x_low))
            rate = attainable_flop_per_s(peak, bandwidth, intensity)
            if rate < peak:
                _put(grid, row_of(rate), column, "·")
    for name, rate in compute:
        _write(grid, row_of(rate), width - len(name) - 1, name)
    for roof in memory:
        _label_slope(grid, roof, peak, row_of, x_low, x_high)
    legend: list[tuple[str, str]] = []
    at: dict[tuple[int, int], int] = {}
    for point in points:
        place = (row_of(point.ops_per_second), column_of(point.ops_per_byte))
        if place in at:
            letter, names = legend[at[place]]
            legend[at[place]] = (letter, f"{names}, {point.name}")
            continue
        at[place] = len(legend)
        legend.append((LABELS[len(legend) % len(LABELS)], point.name))
        _put(grid, *place, legend[-1][0], over=True)
    return RooflinePlot(tuple(_frame(grid, x_low, x_high, y_low, y_high)), tuple(legend))


def format_rate(rate: float) -> str:
    """ "1.5T", "200G", "3M": three digits at most."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= factor:
            return f"{rate / factor:.3g}{letter}"
    return f"{rate:.3g}"


def _put(grid: list[list[str]], row: int, column: int, character: str, *, over: bool = False) -> None:
    if 0 <= row < len(grid) and 0 <= column < len(grid[0]) and (over or grid[row][column] == " "):
        grid[row][column] = character


def _write(grid: list[list[str]], row: int, column: int, text: str) -> None:
    for offset, character in enumerate(text):
        _put(grid, row, column + offset, character, over=True)


def _label_slope(
    grid: list[list[str]],
    roof: tuple[str, float],
    peak: float,
    row_of: Callable[[float], int],
    x_low: float,
    x_high: float,
) -> None:
    """Write a memory roof's name beside its line, where there is room, from the left."""
    (name, bandwidth), width = roof, len(grid[0])
    for column in range(1, width - len(name) - 2):
        rate = bandwidth * 10 ** (x_low + column / (width - 1) * (x_high - x_low))
        row = row_of(rate) - 1
        if rate < peak and 0 <= row < len(grid):
            cells = grid[row][max(0, column - len(name)) : column + 1]
            if len(cells) == len(name) + 1 and all(cell == " " for cell in cells):
                _write(grid, row, column - len(name), name)
                return


def _frame(grid: list[list[str]], x_low: float, x_high: float, y_low: float, y_high: float) -> list[str]:
    """Axes with their decades: rates on the left, intensities below."""
    height, width = len(grid), len(grid[0])
    marks = {height - 1 - round((d - y_low) / (y_high - y_low) * (height - 1)): d for d in _decades(y_low, y_high)}
    lines = []
    for row, cells in enumerate(grid):
        label = format_rate(10.0 ** marks[row]) if row in marks else ""
        lines.append(f"{label:>6} {'┼' if row in marks else '│'}{''.join(cells)}".rstrip())
    axis, labels = ["─"] * width, [" "] * (width + 8)
    for decade in _decades(x_low, x_high):
        column = round((decade - x_low) / (x_high - x_low) * (width - 1))
        axis[column] = "┼"
        for offset, character in enumerate(f"{10.0**decade:g}"):
            labels[column + offset] = character
    lines.append(f"{'':>6} └{''.join(axis)}")
    lines.append(f"{'op/s':>6}  {''.join(labels).rstrip()}")
    return lines


def _decades(low: float, high: float) -> range:
    return range(math.ceil(low), math.floor(high) + 1)
