"""A study in the terminal: its table, with a bar for the plotted value in every row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from edgeawq.quantize.study import Study

BAR_WIDTH = 20
EIGHTHS = " ▏▎▍▌▋▊▉█"


def make_study_table(study: Study) -> Table:
    """The study's rows; the last column shows how far the plotted value is above the float model's."""
    from rich import box
    from rich.table import Table

    from edgeawq.quantize.study import show_value

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    numeric = {
        column.key
        for column in study.columns
        if any(isinstance(row.get(column.key), (int, float)) for row in study.rows)
    }
    for column in study.columns:
        table.add_column(column.title, justify="right" if column.key in numeric else "left")
    table.add_column("", no_wrap=True)
    bars = make_bars([read_number(row.get(study.plot.y)) for row in study.rows], study.baseline)
    for row, bar in zip(study.rows, bars, strict=True):
        cells = [show_value(row.get(column.key), column.form) for column in study.columns]
        table.add_row(*cells, f"[cyan]{bar}[/]")
    return table


def read_number(value: object) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def make_bars(values: list[float | None], baseline: float | None) -> list[str]:
    """Bars from the baseline (or the smallest value) to each value; logarithmic where values differ widely."""
    known = [value for value in values if value is not None]
    if not known:
        return ["" for _ in values]
    low = baseline if baseline is not None else min(known)
    heights = [None if value is None else max(value - low, 0.0) for value in values]
    largest = max(height for height in heights if height is not None)
    if low > 0 and max(known) > 20 * low:
        heights = [None if value is None else max(math.log(value / low), 0.0) for value in values]
        largest = max(height for height in heights if height is not None)
    return [draw_bar(height / largest) if height is not None and largest > 0 else "" for height in heights]


def draw_bar(share: float) -> str:
    """A bar of a share of BAR_WIDTH characters, in eighths."""
    eighths = round(share * BAR_WIDTH * 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (EIGHTHS[rest] if rest else "")
