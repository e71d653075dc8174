"""Measured profiles as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgeawq.errors import UsageError
from edgeawq.profiling.ceilings import Expectation, list_expectations
from edgeawq.profiling.chart_parts import NAME_PIXELS
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
from edgeawq.profiling.report_tables import (
    tabulate_breakdown,
    tabulate_comparison,
    tabulate_machine,
    tabulate_operations,
    tabulate_points,
    tabulate_predictions,
    tabulate_staircase,
)
from edgeawq.profiling.report_text import warn_of_disturbance
from edgeawq.profiling.schema import ModelProfile, Profile
from edgeawq.profiling.units import binary_size, show
from edgeawq.profiling.verdict_parts import count_threads, describe_board
from edgeawq.profiling.verdicts import Verdict, find_verdicts
from edgeawq.reports.page import Chart, Columns, Facts, Finding, Findings, Page, Part, Section, Stack, Table

MAX_PROFILES = 8


def make_page(
    profiles: Sequence[Profile], predicted: Sequence[Mapping[str, Any]] = (), names: Sequence[str] = ()
) -> Page:
    """The report of one profile, or of several with a comparison first.

    predicted: rows of name, predicted, measured (tokens per second) and kind, for the chart that sets them against
    each other, beside what the profiles themselves give. names: what the profiles are called where there are several.
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
    lead = f"{describe_board(first)}; measured {first.created} by edgeawq {first.tool_version}"
    return Page(title, [lead], sections)


def _describe(profile: Profile, prefix: str, predicted: Sequence[Mapping[str, Any]]) -> Iterable[Section]:
    yield Section(f"{prefix}What it means", [_list_findings(find_verdicts(profile)), _list_facts(profile)])
    roofline = make_roofline(profile)
    if roofline is not None:
        text = (
            "Slanted lines: what each memory feeds; dashed lines: what the cores can do. Full points were measured."
            " Hollow points stand at the DRAM roof: the same matrix in float16 and as it is stored."
        )
        title = "Operations per second against operations per byte"
        table = tabulate_operations(profile)
        yield Section(f"{prefix}Roofline", [Chart(title, text, roofline, table, label_pixels=NAME_PIXELS)])
    if profile.model is not None:
        yield from _describe_model(profile, prefix, list_expectations(profile), predicted)
    yield Section(f"{prefix}Memory and machine", [*_show_machine(profile), tabulate_machine(profile), *_miss(profile)])


def _describe_model(
    profile: Profile, prefix: str, expectations: Sequence[Expectation], predicted: Sequence[Mapping[str, Any]]
) -> Iterable[Section]:
    model = profile.model
    assert model is not None
    decode = sorted((p for p in model.phases if p.phase == "decode"), key=lambda p: p.context_tokens)
    if decode:
        table = tabulate_breakdown(decode)
        chart = Chart("Time of one token by operation", "", make_breakdown(decode), table, label_pixels=NAME_PIXELS)
        yield Section(f"{prefix}Where a token's time goes", [chart])
    charts = list(_show_speeds({model.name: model}, expectations))
    if model.decode_by_threads:
        models = {model.name: model}
        table = tabulate_points(
            models, ("threads", "tokens/s"), lambda m: [(p.threads, p.tokens_per_second) for p in m.decode_by_threads]
        )
        charts.append(Chart("Decode speed by threads", "", make_threads_bars(models), table))
    rows = [*_list_predictions(expectations), *predicted]
    if rows:
        text = "Grey: within 15 % of each other. What stands above the line was measured slower than predicted."
        charts.append(Chart("Predicted against measured", text, make_predictions(rows), tabulate_predictions(rows)))
    if charts:
        yield Section(f"{prefix}Speed", [Columns(charts)])


def _show_speeds(models: Mapping[str, ModelProfile], expectations: Sequence[Expectation]) -> Iterable[Chart]:
    """Decode against the context and the first token against the prompt, where they were measured."""
    if any(model.decode_by_context for model in models.values()):
        table = tabulate_points(
            models,
            ("context", "tokens/s"),
            lambda m: [(p.context_tokens, p.tokens_per_second) for p in m.decode_by_context],
        )
        yield Chart("Decode speed against context", "", make_decode_lines(models, expectations), table)
    if any(model.first_token for model in models.values()):
        table = tabulate_points(
            models, ("prompt", "seconds"), lambda m: [(p.prompt_tokens, p.seconds) for p in m.first_token]
        )
        lines = make_first_token_lines(models, expectations)
        yield Chart("Time to the first token against the prompt", "", lines, table)


def _compare(profiles: Sequence[Profile], comparison: Comparison) -> Iterable[Section]:
    differences = Table(("", *comparison.names), [(title, *texts) for title, texts in comparison.differences],
                        texts=range(len(profiles) + 1))  # fmt: skip
    yield Section("Side by side", [differences, tabulate_comparison(comparison), _summarize(comparison)])
    names = dict(zip(comparison.names, profiles, strict=True))
    models = {name: profile.model for name, profile in names.items() if profile.model is not None}
    if len(models) > 1:
        yield Section("Speeds together", [Columns(list(_show_speeds(models, ())))])


def _summarize(comparison: Comparison) -> str:
    count = len(comparison.regressions)
    if comparison.is_same_device:
        summary = f"{count or 'No'} regression{'' if count == 1 else 's'} against {comparison.names[0]}."
    else:
        summary = f"Different devices: ratios are against {comparison.names[0]}; none is called a regression."
    return f"{summary} {warn_of_disturbance(comparison)}" if comparison.disturbed else summary


def _list_findings(verdicts: Sequence[Verdict]) -> Part:
    if not verdicts:
        return "Nothing stands out."
    return Findings([Finding(v.severity, v.text, "; ".join(v.evidence)) for v in verdicts])


def _list_facts(profile: Profile) -> Facts:
    device, model = profile.device, profile.model
    caches = ", ".join(f"L{cache.level} {binary_size(cache.bytes)}" for cache in device.caches)
    facts = [
        ("Device", f"{device.name}, {describe_board(profile)}"),
        ("CPU", f"{device.cpus} CPUs, {device.isa}" + (f"; {caches}" if caches else "")),
        ("Memory", binary_size(device.memory_bytes)),
    ]
    if model is not None:
        how = f"{count_threads(model.threads)}, {model.activations} activations, {model.kv_bits}-bit KV cache"
        facts.append(("Model", f"{model.name} ({model.bundle}), {show(model.weights_bytes, 'B')} of weights"))
        facts.append(("Run with", how))
    state = "" if profile.complete else "; stopped early"
    facts.append(("Measured", f"{profile.created} in {profile.seconds:.0f} s{state}"))
    return Facts(facts)


def _show_machine(profile: Profile) -> Iterable[Part]:
    columns: list[Part] = []
    staircase = make_staircase(profile)
    if staircase is not None:
        columns.append(Chart("The cache staircase: read bandwidth", "", staircase, tabulate_staircase(profile)))
    samples = [Chart(title, "", spec) for title, spec in make_machine_lines(profile)]
    if samples:
        columns.append(Stack(samples))
    if columns:
        yield Columns(columns)


def _list_predictions(expectations: Sequence[Expectation]) -> list[dict[str, Any]]:
    rows = []
    for e in expectations:
        amount = e.tokens if e.what == "first_token" else 1
        name = f"prompt of {e.tokens:,}" if e.what == "first_token" else f"decode at {e.tokens:,}"
        kinds = [("ceiling at the roof", e.ceiling_s)]
        if e.expected_s is not None and e.expected_s != e.measured_s:
            kinds.append(("predicted from the shortest", e.expected_s))
        rows += [
            {"name": name, "predicted": amount / seconds, "measured": amount / e.measured_s, "kind": kind}
            for kind, seconds in kinds
            if seconds > 0
        ]
    return rows


def _miss(profile: Profile) -> Iterable[str]:
    if profile.unavailable:
        items = "; ".join(f"{entry.what} ({entry.reason})" for entry in profile.unavailable)
        yield f"Not available: {items}"
