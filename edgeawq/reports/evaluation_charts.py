"""The charts of `edgeawq eval --html` that compare models as wholes: size, divergence, agreement, histograms."""

from __future__ import annotations

import math

from edgeawq.quantize.comparison import Comparison
from edgeawq.quantize.histograms import Histogram
from edgeawq.quantize.scores import Divergence
from edgeawq.reports.chart_parts import (
    FLOOR,
    HEIGHT,
    NAME_PIXELS,
    Points,
    list_tooltip,
    make_bits_axis,
    make_chart,
    make_colour,
    make_line_mark,
    make_log_axis,
)
from edgeawq.reports.page import Chart, Spec

BAR_HEIGHT = 38
POINT_MARK: Spec = {"type": "point", "filled": True, "size": 110, "opacity": 0.95}


def list_diverging(comparison: Comparison, names: list[str]) -> list[tuple[str, float | None, Divergence]]:
    """(name, bits per weight, divergence) of the models that were compared with the reference."""
    return [
        (name, result.storage.bits_per_weight, result.score.divergence)
        for name, result in zip(names, comparison.results, strict=True)
        if result.score.divergence is not None
    ]


def make_size_chart(comparison: Comparison, names: list[str]) -> Chart | None:
    """Perplexity against bits per weight, with the reference as a line."""
    points: Points = [
        {"model": name, "bits": result.storage.bits_per_weight, "perplexity": result.score.perplexity}
        for name, result in zip(names, comparison.results, strict=True)
        if result.storage.bits_per_weight is not None
        and math.isfinite(result.score.perplexity)
        and not result.is_reference
    ]
    if not points:
        return None
    values = [float(str(point["perplexity"])) for point in points]
    scale: Spec = {"type": "log", "padding": 14}
    if max(values) <= 4 * min(values):
        scale = {"zero": False, "padding": 14}
    y = {"field": "perplexity", "type": "quantitative", "title": "perplexity", "scale": scale, "axis": {"tickCount": 5}}
    encoding = {
        "x": make_bits_axis(points),
        "y": y,
        "color": make_colour(),
        "tooltip": list_tooltip(["model"], bits=("bits per weight", ".3f"), perplexity=("perplexity", ".4~f")),
    }
    layers: list[Spec] = [{"data": {"values": points}, "mark": POINT_MARK, "encoding": encoding}]
    reference = comparison.reference
    if reference is not None and math.isfinite(reference.score.perplexity):
        layers += make_reference_line(reference.score.perplexity)
    return Chart(
        "Perplexity against size",
        "Lower left is better. Bits per weight of the blocks' linear layers, scales and zeros included.",
        {"width": "container", "height": HEIGHT, "layer": layers},
    )


def make_reference_line(perplexity: float) -> list[Spec]:
    """A dashed line across the chart with what it stands for."""
    data = {"values": [{"perplexity": perplexity, "label": f"float: {perplexity:.3f}"}]}
    y = {"field": "perplexity", "type": "quantitative"}
    return [
        {"data": data, "mark": {"type": "rule", "strokeDash": [5, 4]}, "encoding": {"y": y}},
        {
            "data": data,
            "mark": {"type": "text", "align": "left", "baseline": "bottom", "dx": 4, "dy": -4},
            "encoding": {"x": {"value": 0}, "y": y, "text": {"field": "label"}},
        },
    ]


def make_divergence_chart(comparison: Comparison, names: list[str]) -> Chart | None:
    """Mean divergence against bits per weight; nothing for a single model, whose figure is in the table."""
    points: Points = [
        {"model": name, "bits": bits, "kl": max(divergence.mean, FLOOR)}
        for name, bits, divergence in list_diverging(comparison, names)
        if bits is not None and math.isfinite(divergence.mean)
    ]
    if len(points) < 2:
        return None
    title = "mean KL divergence, nats"
    encoding = {
        "x": make_bits_axis(points),
        "y": make_log_axis("kl", title),
        "color": make_colour(),
        "tooltip": list_tooltip(["model"], bits=("bits per weight", ".3f"), kl=(title, ".4~f")),
    }
    return Chart(
        "Divergence against size",
        "How far the model's predictions are from the float model's; tells models apart that perplexity does not.",
        make_chart(points, POINT_MARK, encoding),
    )


def make_percentile_chart(comparison: Comparison, names: list[str]) -> Chart | None:
    """The divergence's percentiles, and its largest value."""
    points: Points = [
        {"model": name, "percentile": label, "kl": max(value, FLOOR)}
        for name, _, divergence in list_diverging(comparison, names)
        for label, value in (
            *((f"{percent} %", value) for percent, value in divergence.percentiles.items()),
            ("largest", divergence.largest),
        )
        if math.isfinite(value)
    ]
    if not points:
        return None
    encoding = {
        "x": {
            "field": "percentile",
            "type": "ordinal",
            "sort": None,
            "title": "share of tokens",
            "axis": {"labelAngle": 0},
        },
        "y": make_log_axis("kl", "KL divergence, nats"),
        "color": make_colour(lines=True),
        "tooltip": list_tooltip(["model", "percentile"], kl=("KL divergence", ".4~g")),
    }
    return Chart(
        "Divergence of the worst tokens",
        "This share of tokens diverges less than the line says. Rare large divergences are what users notice.",
        make_chart(points, make_line_mark(point=50), encoding),
        # Beside a single model's size; several models have two charts there already.
        is_wide=len({str(point["model"]) for point in points}) > 1,
    )


def make_agreement_chart(comparison: Comparison, names: list[str]) -> Chart | None:
    """The share of tokens with the same likeliest token; nothing for a single model."""
    points: Points = [
        {"model": name, "agreement": divergence.top1_agreement}
        for name, _, divergence in list_diverging(comparison, names)
    ]
    if len(points) < 2:
        return None
    encoding: dict[str, object] = {
        "y": {"field": "model", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 150}},
        "x": {
            "field": "agreement",
            "type": "quantitative",
            "title": "same likeliest token",
            "axis": {"format": ".0%", "values": [0, 0.25, 0.5, 0.75, 1]},
            "scale": {"domain": [0, 1.35], "nice": False},
        },
        "tooltip": list_tooltip(["model"], agreement=("agreement", ".2%")),
    }
    bars = {
        "mark": {"type": "bar", "height": {"band": 0.6}},
        "encoding": {**encoding, "color": {**make_colour(), "legend": None}},
    }
    labels = {
        "mark": {"type": "text", "align": "left", "dx": 6},
        "encoding": {**encoding, "text": {"field": "agreement", "format": ".1%"}},
    }
    return Chart(
        "Agreement with the float model",
        "How often both would write the same next token.",
        {"width": "container", "height": BAR_HEIGHT * len(points), "data": {"values": points}, "layer": [bars, labels]},
        # A few bars beside a tall chart would leave most of their frame empty.
        is_wide=True,
    )


def make_histogram_chart(title: str, text: str, histograms: dict[str, Histogram], axis: str, unit: str) -> Chart:
    """Counts over bins as steps, one line for each histogram; empty bins interrupt it."""
    points: Points = [
        {
            "name": name.removesuffix("_proj"),
            "value": round(histogram.low + (number + 0.5) * histogram.step, 6),
            "count": count if count else None,
        }
        for name, histogram in histograms.items()
        for number, count in enumerate(histogram.counts)
    ]
    mark = {"type": "line", "interpolate": "step", "strokeWidth": 1.6, "invalid": "break-paths-filter-domains"}
    encoding = {
        "x": {"field": "value", "type": "quantitative", "title": axis},
        "y": make_log_axis("count", unit, format=".1~s"),
        "color": make_colour("name", legend={"symbolType": "stroke"}),
        "tooltip": list_tooltip(["name"], value=(axis, ".3~f"), count=(unit, ",d")),
    }
    text += " The outermost steps count all that lies beyond."
    return Chart(title, text, make_chart(points, mark, encoding), label_pixels=NAME_PIXELS)
