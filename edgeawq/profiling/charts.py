"""Charts of measured profiles as Vega-Lite specifications: plain dicts, no library needed to make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeawq.profiling.ceilings import Expectation
from edgeawq.profiling.chart_parts import (
    OPERATIONS,
    base,
    lines,
    log_scale,
    operation_color,
    quantity,
    spread_of,
)
from edgeawq.profiling.schema import ModelProfile, PhasePoint, Profile
from edgeawq.profiling.verdict_parts import count_threads
from edgeawq.reports.page import Spec
from edgeawq.reports.style import COLORS, GREY

_BINARY = (
    "datum.value >= 1073741824 ? format(datum.value / 1073741824, '~r') + ' GiB' : "
    "datum.value >= 1048576 ? format(datum.value / 1048576, '~r') + ' MiB' : format(datum.value / 1024, '~r') + ' KiB'"
)
BAND = 0.15  # what a prediction may be off


def make_breakdown(phases: Sequence[PhasePoint]) -> Spec:
    """The time of one token by operation, one bar for each place of the context."""
    values = [
        {
            "step": f"{phase.context_tokens:,} tokens",
            "order": phase.context_tokens,
            "operation": op.kind,
            "rank": OPERATIONS.index(op.kind),
            "ms": 1e3 * op.seconds.median,
            "share": f"{100 * op.share_of_step:.1f} %",
        }
        for phase in phases
        for op in phase.operations
        if op.seconds.median > 0
    ]
    tooltip = [{"field": "operation"}, {"field": "ms", "format": ".3"}, {"field": "share"}, {"field": "step"}]
    return {
        **base(46 * max(1, len(phases))),
        "data": {"values": values},
        "mark": {"type": "bar"},
        "encoding": {
            "y": {"field": "step", "type": "nominal", "sort": {"field": "order"}, "title": None},
            "x": quantity("ms", "milliseconds a token", stack="zero"),
            "color": operation_color(values),
            "order": quantity("rank"),
            "tooltip": tooltip,
        },
    }


def make_staircase(profile: Profile) -> Spec | None:
    """Read bandwidth against the size of the working set, one line for each number of threads."""
    values = [
        {
            "bytes": point.bytes,
            "rate": point.bytes_per_second.median,
            "threads": count_threads(point.threads),
            "level": point.level,
            **spread_of(point.bytes_per_second),
        }
        for point in profile.memory
        if point.kind == "read" and point.bytes > 0 and point.bytes_per_second.median > 0
    ]
    if not values:
        return None
    scale = {"type": "log", "base": 2, "nice": False}
    x = quantity("bytes", "working set", scale=scale, axis={"labelExpr": _BINARY, "tickCount": 6})
    return lines(values, x, quantity("rate", "bytes read per second", axis={"format": "~s"}), "threads", ("level",))


def make_decode_lines(models: Mapping[str, ModelProfile], expectations: Sequence[Expectation]) -> Spec:
    """Decode speed against context; `expectations` add the ceiling and what was predicted."""
    values: list[dict[str, Any]] = [
        {"tokens": p.context_tokens, "speed": p.tokens_per_second.median, "of": name, **spread_of(p.tokens_per_second)}
        for name, model in models.items()
        for p in model.decode_by_context
    ]
    decode = [expected for expected in expectations if expected.what == "decode"]
    values += [{"tokens": e.tokens, "speed": 1 / e.ceiling_s, "of": "at the DRAM roof"} for e in decode if e.ceiling_s]
    values += [
        {"tokens": e.tokens, "speed": 1 / e.expected_s, "of": "predicted from the shortest"}
        for e in decode
        if e.expected_s
    ]
    return lines(values, quantity("tokens", "tokens in the context"), quantity("speed", "tokens per second"), "of")


def make_first_token_lines(models: Mapping[str, ModelProfile], expectations: Sequence[Expectation]) -> Spec:
    """Time to the first token against the prompt's length, both logarithmic."""
    values: list[dict[str, Any]] = [
        {"tokens": p.prompt_tokens, "seconds": p.seconds.median, "of": name, **spread_of(p.seconds)}
        for name, model in models.items()
        for p in model.first_token
        if p.seconds.lower_quartile > 0
    ]
    values += [
        {"tokens": e.tokens, "seconds": e.ceiling_s, "of": "at the roof"}
        for e in expectations
        if e.what == "first_token" and e.ceiling_s > 0
    ]
    ticks = sorted({value["tokens"] for value in values})
    scale = {"type": "log", "base": 2, "nice": False, "padding": 8}
    x = quantity("tokens", "tokens of the prompt", scale=scale, axis={"format": "d", "values": ticks})
    found = [value["seconds"] for value in values] or [1.0]
    y = log_scale("seconds", "seconds to the first token", min(found) / 2, max(found) * 2)
    return lines(values, x, {**y, "axis": {**y["axis"], "format": "~g"}}, "of")


def make_threads_bars(models: Mapping[str, ModelProfile]) -> Spec:
    """Decode speed by the number of threads."""
    values = [
        {"threads": p.threads, "speed": p.tokens_per_second.median, "of": name, **spread_of(p.tokens_per_second)}
        for name, model in models.items()
        for p in model.decode_by_threads
    ]
    tooltip = [{"field": "of"}, {"field": "threads"}, {"field": "speed", "format": ".3"}]
    return {
        **base(320),
        "data": {"values": values},
        "encoding": {
            "x": {"field": "threads", "type": "ordinal", "title": "threads", "axis": {"labelAngle": 0}},
            "xOffset": {"field": "of"},
        },
        "layer": [
            {
                "mark": {"type": "bar"},
                "encoding": {
                    "y": quantity("speed", "tokens per second", axis={"tickCount": 6}),
                    "color": {"field": "of", "legend": {"title": None} if len(models) > 1 else None},
                    "tooltip": tooltip,
                },
            },
            {
                "mark": {"type": "rule", "color": GREY, "strokeWidth": 2},
                "encoding": {"y": quantity("low"), "y2": {"field": "high"}},
            },
        ],
    }


def make_predictions(values: Sequence[Mapping[str, Any]]) -> Spec:
    """Predicted against measured speeds, both logarithmic, with the line where they are equal and a band about it.

    Each value: name, predicted, measured (tokens per second), kind.
    """
    both = [float(value[key]) for value in values for key in ("predicted", "measured")]
    low, high = min(both) * 0.7, max(both) * 1.4
    band = [{"measured": x, "same": x, "low": x * (1 - BAND), "high": x * (1 + BAND)} for x in (low, high)]
    x = log_scale("measured", "measured, tokens per second", low, high)
    y = log_scale("predicted", "predicted, tokens per second", low, high)
    tooltip = [{"field": "name"}, {"field": "kind"}]
    tooltip += [{"field": key, "format": ".3"} for key in ("predicted", "measured")]
    return {
        **base(300),
        "layer": [
            {
                "data": {"values": band},
                "mark": {"type": "area", "opacity": 0.18, "color": GREY, "clip": True},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "data": {"values": band},
                "mark": {"type": "line", "color": GREY, "strokeDash": [4, 4]},
                "encoding": {"x": quantity("measured"), "y": quantity("same")},
            },
            {
                "data": {"values": list(values)},
                "mark": {"type": "point", "filled": True, "size": 90},
                "encoding": {
                    "x": quantity("measured"),
                    "y": quantity("predicted"),
                    "color": {"field": "kind", "legend": {"title": None}},
                    "tooltip": tooltip,
                },
            },
        ],
    }


def make_machine_lines(profile: Profile) -> list[tuple[str, Spec]]:
    """(title, chart) of clock, temperature and other programs while measuring: what the system tells of them."""
    charts = []
    for title, field, scale in (
        ("Clock while measuring, GHz", "clock_hertz", 1e-9),
        ("Temperature while measuring, °C", "temperature_celsius", 1.0),
        ("Other programs while measuring, % of the CPUs", "other_busy_share", 100.0),
    ):
        values = [
            {"second": sample.seconds, "value": scale * value, "stage": sample.stage}
            for sample in profile.samples
            if (value := getattr(sample, field)) is not None
        ]
        if len(values) > 1:
            charts.append((title, _draw_samples(values)))
    return charts


def _draw_samples(values: Sequence[Mapping[str, Any]]) -> Spec:
    found = [float(value["value"]) for value in values]
    low, high = min(found), max(found)
    room = 0.05 * abs(high) or 1.0  # a steady value needs an axis, too
    scale = {"domain": [low - room if low < 0 else max(0.0, low - room), high + room], "nice": False}
    tooltip = [{"field": "stage"}, {"field": "second"}, {"field": "value", "format": ".4"}]
    return {
        **base(90),
        "data": {"values": list(values)},
        "mark": {"type": "line", "point": True, "color": COLORS[0]},
        "encoding": {
            "x": quantity("second", "seconds since the start"),
            "y": quantity("value", "", axis={"tickCount": 3}, scale=scale),
            "tooltip": tooltip,
        },
    }
