"""Measured profiles as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgeawq.errors import UsageError
from edgeawq.profiling.ceilings import Expectation, list_expectations
from edgeawq.profiling.chart_roofline import make_roofline
from edgeawq.profiling.charts import (
    make_breakdown,
    make_decode_lines,
    make_first_token_lines,
    make_machine_lines,
    make_predictions,
    make_staircase,
    make_threads_bars,
)
from edgeawq.profiling.compare import Comparison, compare_profiles
from edgeawq.profiling.html_page import Chart, HtmlTable, Section, escape, make_html, make_table
from edgeawq.profiling.report_text import warn_of_disturbance
from edgeawq.profiling.schema import Measurement, PhasePoint, Profile
from edgeawq.profiling.units import binary_size, show, three_digits, with_prefix
from edgeawq.profiling.verdict_parts import count_threads
from edgeawq.profiling.verdicts import Verdict, find_verdicts

MAX_PROFILES = 8


def make_page(
    profiles: Sequence[Profile], predicted: Sequence[Mapping[str, Any]] = (), names: Sequence[str] = ()
) -> str:
    """The report of one profile, or of several with a comparison first.

    predicted: rows of name, predicted, measured (tokens per second) and kind, for the chart that sets them against
    each other, beside what the profiles themselves give. names: what the profiles are called where there are several.
    Raises MissingExtraError without the charts' library.
    """
    if not 1 <= len(profiles) <= MAX_PROFILES:
        raise UsageError(f"a page holds 1 to {MAX_PROFILES} profiles, not {len(profiles)}")
    sections: list[Section] = []
    prefixes = [""]
    if len(profiles) > 1:
        comparison = compare_profiles(profiles, names)
        sections += _compare(profiles, comparison)
        prefixes = [f"{name}: " for name in comparison.names]
    for profile, prefix in zip(profiles, prefixes, strict=True):
        sections += _describe(profile, prefix, predicted)
    first = profiles[0]
    title = "Roofline of " + ", ".join(dict.fromkeys(profile.device.name for profile in profiles))
    subtitle = f"{first.device.model}; measured {first.created} by edgeawq {first.tool_version}"
    return make_html(title, subtitle, sections)


def _describe(profile: Profile, prefix: str, predicted: Sequence[Mapping[str, Any]]) -> Iterable[Section]:
    yield Section(f"{prefix}What it means", [_list_verdicts(find_verdicts(profile)), _facts(profile)])
    roofline = make_roofline(profile)
    if roofline is not None:
        note = (
            "Slanted lines: what each memory feeds; dashed lines: what the cores can do. Full points were measured."
            " Hollow points stand at the DRAM roof: the same matrix in float16 and as it is stored."
        )
        title = "Operations per second against operations per byte"
        chart = Chart(title, roofline, note, _operation_table(profile))
        yield Section(f"{prefix}Roofline", [chart])
    model = profile.model
    if model is not None:
        expectations = list_expectations(profile)
        yield from _describe_model(profile, prefix, expectations, predicted)
    yield Section(f"{prefix}Memory and machine", [*_memory(profile), _machine_table(profile), *_missing(profile)])


def _describe_model(
    profile: Profile, prefix: str, expectations: Sequence[Expectation], predicted: Sequence[Mapping[str, Any]]
) -> Iterable[Section]:
    model = profile.model
    assert model is not None
    decode = sorted((p for p in model.phases if p.phase == "decode"), key=lambda p: p.context_tokens)
    if decode:
        chart = Chart("Time of one token by operation", make_breakdown(decode), "", _breakdown_table(decode))
        yield Section(f"{prefix}Where a token's time goes", [chart])
    models = {model.name: model}
    charts: list[Chart] = []
    if model.decode_by_context:
        charts.append(Chart("Decode speed against context", make_decode_lines(models, expectations)))
    if model.first_token:
        charts.append(Chart("Time to the first token against the prompt", make_first_token_lines(models, expectations)))
    if model.decode_by_threads:
        charts.append(Chart("Decode speed by threads", make_threads_bars(models)))
    rows = [*_prediction_rows(expectations), *predicted]
    if rows:
        note = "Grey: within 15 % of each other. What stands above the line was measured slower than predicted."
        charts.append(Chart("Predicted against measured", make_predictions(rows), note, _prediction_table(rows)))
    yield Section(f"{prefix}Speed", ['<div class="columns">', *charts, "</div>"])


def _compare(profiles: Sequence[Profile], comparison: Comparison) -> Iterable[Section]:
    yield Section("Side by side", [_comparison_table(comparison)])
    names = dict(zip(comparison.names, profiles, strict=True))
    models = {name: profile.model for name, profile in names.items() if profile.model is not None}
    if len(models) > 1:
        parts: list[str | Chart] = ['<div class="columns">']
        parts.append(Chart("Decode speed against context", make_decode_lines(models, ())))
        parts.append(Chart("Time to the first token against the prompt", make_first_token_lines(models, ())))
        yield Section("Speeds together", [*parts, "</div>"])


def _list_verdicts(verdicts: Sequence[Verdict]) -> str:
    items = "".join(
        f'<li class="{v.severity}"><b>{v.severity}</b> {escape(v.text)}'
        f'<div class="evidence">{escape("; ".join(v.evidence))}</div></li>'
        for v in verdicts
    )
    return f'<ul class="verdicts">{items}</ul>' if items else "<p>Nothing stands out.</p>"


def _facts(profile: Profile) -> str:
    device, model = profile.device, profile.model
    caches = ", ".join(f"L{cache.level} {binary_size(cache.bytes)}" for cache in device.caches)
    facts = [
        ("Device", f"{device.name}, {device.model}" + (", a virtual machine" if device.virtual_machine else "")),
        ("CPU", f"{device.cpus} CPUs, {device.isa}" + (f"; {caches}" if caches else "")),
        ("Memory", binary_size(device.memory_bytes)),
    ]
    if model is not None:
        facts.append(("Model", f"{model.name} ({model.bundle}), {show(model.weights_bytes, 'B')} of weights"))
        facts.append(
            (
                "Run with",
                f"{count_threads(model.threads)}, {model.activations} activations, {model.kv_bits}-bit KV cache",
            )
        )
    state = "" if profile.complete else "; stopped early"
    facts.append(("Measured", f"{profile.created} in {profile.seconds:.0f} s{state}"))
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in facts)}</dl>"


def _memory(profile: Profile) -> Iterable[str | Chart]:
    yield '<div class="columns">'
    staircase = make_staircase(profile)
    if staircase is not None:
        reads = [p for p in profile.memory if p.kind == "read"]
        table = HtmlTable(
            ("working set", "threads", "level", "median", "middle half"),
            [
                (
                    binary_size(p.bytes),
                    str(p.threads),
                    p.level,
                    show(p.bytes_per_second.median, "B/s"),
                    _middle_half(p.bytes_per_second),
                )
                for p in reads
            ],
            (0, 1, 3, 4),
        )
        yield Chart("The cache staircase: read bandwidth", staircase, "", table)
    yield "<div>"
    for title, spec in make_machine_lines(profile):
        yield Chart(f"{title} while measuring", spec)
    yield "</div></div>"


def _middle_half(rate: Measurement) -> str:
    return f"{show(rate.lower_quartile, 'B/s')} … {show(rate.upper_quartile, 'B/s')}"


def _operation_table(profile: Profile) -> HtmlTable | None:
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
    return HtmlTable(head, rows, tuple(range(2, 9))) if rows else None


def _breakdown_table(phases: Sequence[PhasePoint]) -> HtmlTable:
    kinds = list(dict.fromkeys(op.kind for phase in phases for op in phase.operations))
    rows = []
    for kind in kinds:
        cells = []
        for phase in phases:
            op = next((op for op in phase.operations if op.kind == kind), None)
            cells.append(
                "" if op is None else f"{with_prefix(op.seconds.median, 's')} ({100 * op.share_of_step:.1f} %)"
            )
        rows.append((kind, *cells))
    return HtmlTable(
        ("operation", *(f"{phase.context_tokens:,} tokens" for phase in phases)), rows, tuple(range(1, len(phases) + 1))
    )


def _prediction_rows(expectations: Sequence[Expectation]) -> list[dict[str, Any]]:
    rows = []
    for e in expectations:
        amount = e.tokens if e.what == "first_token" else 1
        name = f"prompt of {e.tokens:,}" if e.what == "first_token" else f"decode at {e.tokens:,}"
        kinds = [("ceiling at the roof", e.ceiling_s)]
        if e.expected_s is not None and e.expected_s != e.measured_s:
            kinds.append(("predicted from the shortest context", e.expected_s))
        rows += [
            {"name": name, "predicted": amount / seconds, "measured": amount / e.measured_s, "kind": kind}
            for kind, seconds in kinds
            if seconds > 0
        ]
    return rows


def _prediction_table(rows: Sequence[Mapping[str, Any]]) -> HtmlTable:
    return HtmlTable(
        ("what", "kind", "predicted, tokens/s", "measured, tokens/s", "measured ÷ predicted"),
        [
            (
                str(row["name"]),
                str(row["kind"]),
                three_digits(row["predicted"]),
                three_digits(row["measured"]),
                f"{100 * row['measured'] / row['predicted']:.0f} %",
            )
            for row in rows
        ],
        (2, 3, 4),
    )


def _comparison_table(comparison: Comparison) -> str:
    facts = make_table(HtmlTable(("", *comparison.names), [(title, *texts) for title, texts in comparison.differences]))
    rows = []
    for row in comparison.rows:
        cells = [f"<td>{escape(row.title)}</td>"]
        for index, value in enumerate(row.values):
            ratio = row.ratio(index)
            change = row.changes[index] if comparison.is_same_device and index else ""
            text = "–" if value is None else show(value.median, row.unit)
            more = f" ({100 * (ratio - 1):+.0f} %)" if index and ratio is not None else ""
            mark = {"worse": " ▼", "better": " ▲"}.get(change, "")
            cells.append(f'<td class="number {change}">{escape(text + more + mark)}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th class=number>{escape(name)}</th>" for name in comparison.names)
    head = f"<thead><tr><th></th>{head}</tr></thead>"
    table = f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'
    count = len(comparison.regressions)
    if comparison.is_same_device:
        summary = f"{count or 'No'} regression{'' if count == 1 else 's'} against {comparison.names[0]}."
    else:
        summary = f"Different devices: ratios are against {comparison.names[0]}; none is called a regression."
    if comparison.disturbed:
        summary = f"{summary} {warn_of_disturbance(comparison)}"
    return f"{facts}<p>{escape(summary)}</p>{table}"


def _machine_table(profile: Profile) -> HtmlTable:
    rows: list[tuple[str, str]] = []
    for roof in profile.roofs:
        value = (
            show(roof.bytes_per_second or 0, "B/s") if roof.kind == "memory" else show(roof.ops_per_second or 0, "op/s")
        )
        rows.append((f"roof {roof.name}", f"{value} with {count_threads(roof.threads)}"))
    rows += [(f"clock, {count_threads(c.threads)}", show(c.hertz.median, "Hz")) for c in profile.clock]
    rows += [(f"barrier, {count_threads(b.threads)}", with_prefix(b.seconds.median, "s")) for b in profile.barrier]
    rows += [(f"{p.kind} pages", f"{with_prefix(p.seconds_per_page.median, 's')} a page") for p in profile.pages]
    rows += [
        (
            f"storage, {s.method}",
            show(s.bytes_per_second.median, "B/s") + ("" if s.cache_bypassed else " (maybe from the page cache)"),
        )
        for s in profile.storage
    ]
    for start in () if profile.model is None else profile.model.cold_start:
        where = "storage" if start.cache_bypassed else "the page cache"
        rows.append((f"new process, weights in {where}", f"{three_digits(start.seconds.median)} s to the first token"))
    rows += [
        (
            f"energy, {e.stage}",
            f"{three_digits(e.watts)} W ({e.source})"
            + ("" if e.tokens_per_joule is None else f", {three_digits(e.tokens_per_joule)} tokens/J"),
        )
        for e in profile.energy
    ]
    return HtmlTable(("", "measured"), rows)


def _missing(profile: Profile) -> Iterable[str]:
    if profile.unavailable:
        items = "; ".join(f"{entry.what} ({entry.reason})" for entry in profile.unavailable)
        yield f'<p class="note">Not available: {escape(items)}</p>'
