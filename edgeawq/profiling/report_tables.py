"""The figures behind a page's charts, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from edgeawq.profiling.compare import Comparison, Row
from edgeawq.profiling.machine_figures import list_machine
from edgeawq.profiling.schema import Measurement, ModelProfile, PhasePoint, Profile
from edgeawq.profiling.units import binary_size, show, three_digits, with_prefix
from edgeawq.reports.page import Cell, Table


def tabulate_operations(profile: Profile) -> Table | None:
    """Every operation of every step; None without a model."""
    phases = [] if profile.model is None else profile.model.phases
    rows = [
        (
            f"{phase.phase} at {phase.context_tokens:,}",
            op.kind,
            with_prefix(op.seconds.median, "s"),
            f"{100 * op.share_of_step:.1f} %",
            show(op.bytes, "B") if op.bytes else "",
            "" if op.bytes_per_second is None else show(op.bytes_per_second, "B/s"),
            "" if op.ops_per_second is None else show(op.ops_per_second, "op/s"),
            "" if op.ops_per_byte is None else three_digits(op.ops_per_byte),
            "" if op.share_of_roof is None else f"{100 * op.share_of_roof:.0f} %",
            op.bound_by or "",
        )
        for phase in phases
        for op in phase.operations
    ]
    head = ("step", "operation", "time", "share", "bytes", "bandwidth", "rate", "op/byte", "of its roof", "bound by")
    return Table(head, rows, texts=(0, 1, 9)) if rows else None


def tabulate_breakdown(phases: Sequence[PhasePoint]) -> Table:
    """Time and share of each operation, a column for each place of the context."""
    kinds = list(dict.fromkeys(op.kind for phase in phases for op in phase.operations))
    rows = []
    for kind in kinds:
        found = [next((op for op in phase.operations if op.kind == kind), None) for phase in phases]
        cells = [
            "" if op is None else f"{with_prefix(op.seconds.median, 's')} ({100 * op.share_of_step:.1f} %)"
            for op in found
        ]
        rows.append((kind, *cells))
    return Table(("operation", *(f"{phase.context_tokens:,} tokens" for phase in phases)), rows)


def tabulate_staircase(profile: Profile) -> Table:
    """Read bandwidth by working set and threads."""
    rows = [
        (
            binary_size(p.bytes),
            str(p.threads),
            p.level,
            show(p.bytes_per_second.median, "B/s"),
            _middle_half(p.bytes_per_second),
        )
        for p in profile.memory
        if p.kind == "read"
    ]
    return Table(("working set", "threads", "level", "median", "middle half"), rows, texts=(2,))


def tabulate_points(
    models: Mapping[str, ModelProfile],
    columns: tuple[str, str],
    list_points: Callable[[ModelProfile], Iterable[tuple[int, Measurement]]],
) -> Table:
    """What one or several models did at each of several numbers. columns: what the number is, and the unit."""
    names = () if len(models) == 1 else ("of",)
    rows = [
        (
            f"{count:,}",
            *((name,) if names else ()),
            three_digits(value.median),
            f"{three_digits(value.lower_quartile)} … {three_digits(value.upper_quartile)}",
        )
        for name, model in models.items()
        for count, value in list_points(model)
    ]
    return Table((columns[0], *names, columns[1], "middle half"), rows, texts=(1,) if names else ())


def tabulate_predictions(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Each: name, kind, predicted and measured in tokens per second."""
    cells = [
        (
            str(row["name"]),
            str(row["kind"]),
            three_digits(row["predicted"]),
            three_digits(row["measured"]),
            f"{100 * row['measured'] / row['predicted']:.0f} %",
        )
        for row in rows
    ]
    head = ("what", "kind", "predicted, tokens/s", "measured, tokens/s", "measured ÷ predicted")
    return Table(head, cells, texts=(0, 1))


def tabulate_comparison(comparison: Comparison) -> Table:
    """Figures of several profiles, each against the first one's."""
    rows = [
        (row.title, *(_compare_cell(row, index, comparison.is_same_device) for index in range(len(row.values))))
        for row in comparison.rows
    ]
    return Table(("", *comparison.names), rows)


def _compare_cell(row: Row, index: int, is_same_device: bool) -> str | Cell:
    value, ratio = row.values[index], row.ratio(index)
    text = "–" if value is None else show(value.median, row.unit)
    if index and ratio is not None:
        text += f" ({100 * (ratio - 1):+.0f} %)"
    change = row.changes[index] if is_same_device and index else ""
    if change == "worse":
        return Cell(f"{text} ▼", "worse")
    return Cell(f"{text} ▲", "better") if change == "better" else text


def tabulate_machine(profile: Profile) -> Table:
    """Roofs, clock, barriers, pages, storage and energy, and how long a new process takes."""
    rows = list(list_machine(profile))
    for start in () if profile.model is None else profile.model.cold_start:
        where = "storage" if start.cache_bypassed else "the page cache"
        rows.append((f"new process, weights in {where}", f"{three_digits(start.seconds.median)} s to the first token"))
    return Table(("", "measured"), rows, texts=(0, 1))


def _middle_half(rate: Measurement) -> str:
    return f"{show(rate.lower_quartile, 'B/s')} … {show(rate.upper_quartile, 'B/s')}"
