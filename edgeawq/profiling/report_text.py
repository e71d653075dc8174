"""A measured profile for the terminal: what it means first, then the roofline, the tables, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgeawq.profiling.compare import Comparison, Row
from edgeawq.profiling.machine_figures import list_machine
from edgeawq.profiling.report_plot import draw_profile
from edgeawq.profiling.schema import BandwidthPoint, Measurement, ModelProfile, PhasePoint, Profile
from edgeawq.profiling.units import binary_size, show, three_digits, with_prefix
from edgeawq.profiling.verdict_parts import count_threads, describe_board, find_phase
from edgeawq.profiling.verdicts import Verdict, find_verdicts

STYLES = {"warning": "bold red", "hint": "yellow", "good": "green"}
MARKS = {"warning": "!", "hint": "→", "good": "✓"}
CHANGE_STYLES = {"worse": "bold red", "better": "green", "same": "", "unknown": "dim"}
BOUNDS = {"memory": "memory", "compute": "cores"}
BAR_WIDTH = 12
MAX_SIZES = 16  # rows of the staircase; beyond that only powers of two
NOISY = 0.1  # spread from which on a figure is marked


def make_report(profile: Profile) -> RenderableType:
    """The whole report as something rich can print; readable from 80 columns on, without colour too."""
    parts: list[RenderableType] = [make_header(profile), Text(), make_verdicts(find_verdicts(profile))]
    decode = find_phase(profile.model, "decode")
    parts += _plot(profile, decode)
    if profile.model is not None:
        for phase in profile.model.phases:
            parts += [Text(), make_operations(phase)]
        parts += [Text(), make_speeds(profile.model)]
    parts += [Text(), make_memory(profile), Text(), make_machine(profile)]
    parts += list(_missing(profile))
    return Group(*parts)


def make_header(profile: Profile) -> RenderableType:
    """What was measured, where and when."""
    device, model = profile.device, profile.model
    caches = ", ".join(f"L{cache.level} {binary_size(cache.bytes)}" for cache in device.caches)
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="bold", no_wrap=True)
    lines.add_column(overflow="fold")
    lines.add_row(device.name, Text(describe_board(profile)))
    lines.add_row(
        "CPU",
        Text(
            f"{device.cpus} CPUs, {device.isa}, {binary_size(device.memory_bytes)}" + (f"; {caches}" if caches else "")
        ),
    )
    if model is not None:
        lines.add_row(
            "model",
            Text(
                f"{model.name} ({model.bundle}), {show(model.weights_bytes, 'B')} of weights,"
                f" {count_threads(model.threads)}, {model.activations} activations, {model.kv_bits}-bit KV cache"
            ),
        )
    state = "" if profile.complete else "; stopped early"
    lines.add_row(
        "measured", Text(f"{profile.created} in {profile.seconds:.0f} s by edgeawq {profile.tool_version}{state}")
    )
    return lines


def make_verdicts(verdicts: Iterable[Verdict]) -> RenderableType:
    """Each verdict with its evidence below."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    rows = list(verdicts)
    for verdict in rows:
        text = Text(verdict.text, style="bold" if verdict.severity == "warning" else "")
        if verdict.evidence:
            text.append(f"\n{'; '.join(verdict.evidence)}", style="dim")
        grid.add_row(Text(MARKS[verdict.severity], style=STYLES[verdict.severity]), text)
    return grid if rows else Text("nothing stands out")


def make_operations(phase: PhasePoint) -> Table:
    """Where the time of one step goes, and how near to its roof each operation is."""
    unit = "token" if phase.tokens_per_step == 1 else f"step of {phase.tokens_per_step} tokens"
    table = _table(
        f"{phase.phase.capitalize()} at {phase.context_tokens:,} tokens of context:"
        f" {three_digits(phase.tokens_per_second.median)} tokens/s,"
        f" {with_prefix(phase.untraced_seconds_per_step.median, 's')} a {unit}"
    )
    table.add_column("operation", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("share", justify="left", no_wrap=True)
    for head in ("MB", "GB/s", "Gop/s", "op/B"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("of its roof", no_wrap=True)  # and what that roof is of
    for op in sorted(phase.operations, key=lambda op: -op.seconds.median):
        table.add_row(
            op.kind,
            with_prefix(op.seconds.median, "s"),
            Text(f"{_bar(op.share_of_step, 8)}{100 * op.share_of_step:5.1f} %"),
            _short(op.bytes / 1e6) if op.bytes else "",
            "" if op.bytes_per_second is None else _short(op.bytes_per_second / 1e9),
            "" if op.ops_per_second is None else _short(op.ops_per_second / 1e9),
            "" if op.ops_per_byte is None else _short(op.ops_per_byte),
            "" if op.share_of_roof is None else f"{100 * op.share_of_roof:3.0f} % {BOUNDS.get(op.bound_by or '', '')}",
        )
    return table


def make_speeds(model: ModelProfile) -> RenderableType:
    """Decode against context and threads, first token against prompt, start of a process."""
    grid = Table.grid(padding=(0, 3))
    tables = []
    for title, head, rows in (
        (
            "Decode by context",
            "tokens",
            [(f"{p.context_tokens:,}", p.tokens_per_second) for p in model.decode_by_context],
        ),
        ("Decode by threads", "threads", [(str(p.threads), p.tokens_per_second) for p in model.decode_by_threads]),
    ):
        tables.append(_measurements(title, head, "tokens/s", rows))
    tables.append(
        _measurements(
            "First token", "prompt", "seconds", [(f"{p.prompt_tokens:,}", p.seconds) for p in model.first_token]
        )
    )
    grid.add_row(*tables)
    if not model.cold_start:
        return grid
    starts = _table("A new process up to its first token")
    starts.add_column("weights in", no_wrap=True)
    for head in ("seconds", "import", "open", "first token", "read"):
        starts.add_column(head, justify="right", no_wrap=True)
    for start in model.cold_start:
        starts.add_row(
            "storage" if start.cache_bypassed else "page cache",
            _measured(start.seconds),
            three_digits(start.import_seconds),
            three_digits(start.open_seconds),
            three_digits(start.first_token_seconds),
            show(start.bytes_read, "B"),
        )
    return Group(grid, Text(), starts)


def make_memory(profile: Profile) -> RenderableType:
    """The cache staircase: read bandwidth by the size of the working set, at one and at the best number of threads."""
    reads = [point for point in profile.memory if point.kind == "read"]
    if not reads:
        return Text("memory bandwidth: not measured", style="dim")
    shown = choose_threads(reads)
    top = max(point.bytes_per_second.median for point in reads if point.threads in shown) or 1.0
    table = _table("Read bandwidth by size of the working set, GB/s")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("level", no_wrap=True)
    for threads in shown:
        table.add_column(count_threads(threads), no_wrap=True)
    sizes = sorted({point.bytes for point in reads})
    for size in sizes if len(sizes) <= MAX_SIZES else [size for size in sizes if size & (size - 1) == 0]:
        points = [next((p for p in reads if (p.bytes, p.threads) == (size, n)), None) for n in shown]
        level = next((point.level for point in points if point is not None), "")
        rates = [None if point is None else point.bytes_per_second.median for point in points]
        cells = ["" if rate is None else f"{rate / 1e9:6.1f} {_bar(rate / top, BAR_WIDTH)}" for rate in rates]
        table.add_row(binary_size(size), level, *cells)
    return table


def choose_threads(reads: Sequence[BandwidthPoint]) -> list[int]:
    """The fewest threads measured, the most, and the number that reads the most from DRAM."""
    counts = [point.threads for point in reads]
    from_dram = [point for point in reads if point.level == "DRAM"] or list(reads)
    best = max(from_dram, key=lambda point: point.bytes_per_second.median).threads
    return sorted({min(counts), best, max(counts)})


def make_machine(profile: Profile) -> Table:
    """Peaks, roofs, barrier, pages, storage, clock and energy in one list."""
    table = _table("The machine")
    table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    for name, text in list_machine(profile):
        table.add_row(name, text)
    return table


def make_comparison(comparison: Comparison) -> RenderableType:
    """Profiles side by side; each against the first, with what became worse marked."""
    facts = _table("What differs")
    facts.add_column("", no_wrap=True)
    for name in comparison.names:
        facts.add_column(name, overflow="fold")
    for title, texts in comparison.differences:
        facts.add_row(title, *(Text(text) for text in texts))
    table = _table("Figures")
    table.add_column("", no_wrap=True)
    for name in comparison.names:
        table.add_column(name, justify="right", overflow="fold")
    for row in comparison.rows:
        table.add_row(row.title, *(_compared(row, i, comparison) for i in range(len(row.values))))
    parts: list[RenderableType] = [facts, Text(), table, Text(), _summary(comparison)]
    if comparison.disturbed:
        parts.append(Text(warn_of_disturbance(comparison), style="yellow"))
    return Group(*parts)


def warn_of_disturbance(comparison: Comparison) -> str:
    """That differences may be of the moment and not of the device."""
    return f"Measured on a disturbed machine: {', '.join(comparison.disturbed)}. Measure again before you trust this."


def _compared(row: Row, index: int, comparison: Comparison) -> Text:
    value = row.values[index]
    if value is None:
        return Text("-", style="dim")
    text = Text(show(value.median, row.unit))
    ratio = row.ratio(index)
    if index and ratio is not None:
        change = row.changes[index]
        mark = {"worse": " ▼", "better": " ▲"}.get(change, "  ")
        style = CHANGE_STYLES[change] if comparison.is_same_device else ""
        text.append(f"  {100 * (ratio - 1):+.0f} %{mark}", style=style)
    return text


def _summary(comparison: Comparison) -> Text:
    first = comparison.names[0]
    if not comparison.is_same_device:
        return Text(f"Different devices: ratios are against {first}, and none is called a regression.", style="dim")
    count = len(comparison.regressions)
    limit = f"more than {100 * comparison.threshold:g} % and more than the repetitions differ"
    if count:
        return Text(f"{count} regression{'' if count == 1 else 's'} against {first} ({limit})", style="bold red")
    return Text(f"No regression against {first} ({limit})", style="green")


def _plot(profile: Profile, phase: PhasePoint | None) -> list[RenderableType]:
    drawing = draw_profile(profile, phase)
    if not drawing.lines:
        return []
    legend = "   ".join(f"{letter} {names}" for letter, names in drawing.legend)
    title = Text("Roofline: operations per second against operations per byte moved", style="bold")
    body = Text("\n".join(drawing.lines), no_wrap=True, overflow="crop")
    parts: list[RenderableType] = [Text(), title, body]
    return [*parts, Padding(Text(f"decode:  {legend}"), (0, 0, 0, 8))] if legend else parts


def _missing(profile: Profile) -> Iterable[RenderableType]:
    for entry in profile.unavailable:
        yield Text(f"not available: {entry.what} ({entry.reason})", style="dim")


def _measurements(title: str, head: str, unit: str, rows: list[tuple[str, Measurement]]) -> Table:
    table = _table(title)
    table.add_column(head, justify="right", no_wrap=True)
    table.add_column(unit, justify="right", no_wrap=True)
    for name, value in rows:
        table.add_row(name, _measured(value))
    return table


def _measured(value: Measurement) -> str:
    """The median; with the middle half's half-width where that is wide."""
    text = three_digits(value.median)
    return (
        text if value.spread < NOISY else f"{text} ± {three_digits((value.upper_quartile - value.lower_quartile) / 2)}"
    )


def _short(value: float) -> str:
    """Three digits, five characters."""
    return three_digits(value) if value >= 0.01 or value == 0 else "<0.01"


def _table(title: str) -> Table:
    return Table(
        title=title, title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )


def _bar(share: float, width: int) -> str:
    """A bar of eighths of a character."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + ("▏▎▍▌▋▊▉"[rest - 1] if rest else "")).ljust(width)
