"""The outcome of a study: a table of numbers, and which of them to plot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import edgeawq
from edgeawq.quantize.comparison import drop_infinities
from edgeawq.quantize.report import round_floats

Value = str | float | int | None

# (what is being done, steps done, steps in all)
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Column:
    """A column of the table: the key of its values, its heading, and how a number is written."""

    key: str
    title: str
    form: str = ""  # of `format`, such as ".3f"


@dataclass(frozen=True)
class Plot:
    """Which columns make the picture: one line for each value of `series`."""

    x: str
    y: str
    series: str
    is_x_log: bool = False


@dataclass(frozen=True)
class Study:
    """A table with the words that belong to it."""

    name: str
    title: str
    setting: str  # how it was measured
    columns: tuple[Column, ...]
    rows: tuple[dict[str, Value], ...]
    plot: Plot
    baseline: float | None = None  # of the plotted value: the float model's

    def describe(self) -> dict[str, object]:
        """The study as JSON values."""
        values = drop_infinities(round_floats(asdict(self)))
        assert isinstance(values, dict)
        return {"format": 1, "tool": {"name": "edgeawq", "version": edgeawq.__version__}, **values}


def show_value(value: Value, form: str) -> str:
    """A cell: numbers as the column wants them, nothing for what is missing."""
    if value is None:
        return ""
    if isinstance(value, str) or not form:
        return str(value)
    if isinstance(value, float) and abs(value) >= 1e5:
        return f"{value:.2g}"
    return format(value, form)
