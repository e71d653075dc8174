"""What the charts have in common: colours of operations, axes, and lines with the spread of their repetitions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgeawq.profiling.schema import Measurement
from edgeawq.reports.page import Spec
from edgeawq.reports.style import COLORS

OPERATIONS = (
    "qkv", "attention", "gate_up", "o", "head", "down", "norm", "merge", "quantize", "barrier", "sampling", "python",
    "embedding",
)  # fmt: skip
NAME_PIXELS = 95  # room for an operation in a legend
LINEARS = ("qkv", "o", "gate_up", "down", "head")


def base(height: int) -> dict[str, Any]:
    """A chart as wide as its place, `height` pixels high without its axes."""
    return {"width": "container", "height": height}


def quantity(field: str, title: str | None = None, **more: Any) -> Spec:
    """A quantitative channel."""
    titled = {} if title is None else {"title": title}
    return {"field": field, "type": "quantitative", **titled, **more}


def log_scale(field: str, title: str, low: float, high: float) -> Spec:
    """A logarithmic axis from low to high."""
    scale = {"type": "log", "domain": [low, high], "nice": False}
    return quantity(field, title, scale=scale, axis={"format": "~s", "values": list_ticks(low, high)})


def list_ticks(low: float, high: float) -> list[float]:
    """Decades between low and high; where there are fewer than three, also 2 and 5 times them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if high / low >= 1000 else (1, 2, 5)
    return [tick for d in decades for tick in (step * 10.0**d for step in steps) if low <= tick <= high]


def operation_color(values: Sequence[Mapping[str, Any]]) -> Spec:
    """The same operation has the same colour in every chart."""
    found = {value["operation"] for value in values}
    names = [name for name in OPERATIONS if name in found]
    colors = [COLORS[OPERATIONS.index(name) % len(COLORS)] for name in names]
    return {
        "field": "operation",
        "type": "nominal",
        "scale": {"domain": names, "range": colors},
        "legend": {"title": None, "symbolType": "circle"},
    }


def spread_of(value: Measurement) -> dict[str, float]:
    """The middle half of the repetitions, as the fields that `lines` draws."""
    return {"low": value.lower_quartile, "high": value.upper_quartile}


def lines(values: Sequence[Mapping[str, Any]], x: Spec, y: Spec, series: str, more: Sequence[str] = ()) -> Spec:
    """Lines with points and the middle half of the repetitions; a click on the legend brings one forward."""
    fields = [{"field": name} for name in (series, *more)]
    tooltip = [*fields, {"field": x["field"], "format": ","}, {"field": y["field"], "format": ".3s"}]
    names = list(dict.fromkeys(value[series] for value in values))
    legend = {"title": None, "symbolType": "stroke"}
    chosen = {"name": "chosen", "select": {"type": "point", "fields": [series]}, "bind": "legend"}
    return {
        **base(280),
        "data": {"values": list(values)},
        "encoding": {
            "x": x,
            "color": {"field": series, "scale": {"domain": names}, "legend": legend},
            "opacity": {"condition": {"param": "chosen", "value": 1}, "value": 0.15},
        },
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 2}, "params": [chosen], "encoding": {"y": y}},
            {"mark": {"type": "point", "filled": True, "size": 55}, "encoding": {"y": y, "tooltip": tooltip}},
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {"y": quantity("low"), "y2": {"field": "high"}},
            },
        ],
    }
