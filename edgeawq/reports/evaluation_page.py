"""The page of `edgeawq eval --html`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import edgeawq
from edgeawq.quantize.comparison import Comparison, ModelResult, shorten_names
from edgeawq.quantize.histograms import Histogram
from edgeawq.reports.page import Chart, Columns, Page, Part, Section, Spec, Table

HEIGHT = 280
BAR_HEIGHT = 38
NAME_PIXELS = 95  # room for a layer's name in a legend
LAYER_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The smallest share that a logarithmic axis has to show.
FLOOR = 1e-9


def make_evaluation_page(comparison: Comparison) -> Page:
    """Everything that was measured, as tables and charts."""
    names = shorten_names([result.name for result in comparison.results])
    compared = [(name, result) for name, result in zip(names, comparison.results, strict=True) if result.blocks]
    predictions = [make_size_chart(comparison, names), make_divergence_chart(comparison, names)]
    predictions += [make_percentile_chart(comparison, names), make_agreement_chart(comparison, names)]
    sections = [Section("Scores", [make_score_table(comparison, names), *make_task_tables(comparison, names)])]
    sections += list_section("Predictions", predictions)
    if compared:
        inside = [make_layer_chart(compared), make_block_chart(compared), make_drift_chart(compared)]
        sections += list_section("Inside the model", inside)
    sections += list_section("The float model's own values", make_value_charts(comparison))
    return Page(f"Models on {comparison.text}", describe(comparison), sections, make_notes(comparison, names))


def list_section(title: str, charts: Sequence[Chart | None]) -> list[Section]:
    """A section of the charts that there are; none without any."""
    parts: list[Part] = [chart for chart in charts if chart is not None]
    return [Section(title, [Columns(parts)])] if parts else []


def make_value_charts(comparison: Comparison) -> list[Chart | None]:
    """How weights and activations are distributed, where that was looked at."""
    if comparison.histograms is None:
        return []
    return [
        make_histogram_chart(
            "Weights",
            "Weights in units of their layer's root mean square. Long tails stretch a group's range, and so its "
            "rounding error.",
            comparison.histograms.weights,
            "weight / root mean square",
            "weights",
        ),
        make_histogram_chart(
            "Activations",
            "Mean size of every input channel against its layer's median channel. The few channels far to the "
            "right are those that AWQ protects.",
            comparison.histograms.channels,
            "mean |x| / median, in powers of two",
            "channels",
        ),
    ]


def describe(comparison: Comparison) -> list[str]:
    """What was measured, in words."""
    lines = [f"{comparison.n_scored:,} predicted tokens, {comparison.setting.describe()}. Computed in float32."]
    if comparison.reference is not None:
        lines.append(
            f"Divergence is KL({comparison.reference.name} ‖ model) in nats per token; top-1 is the share of tokens "
            "for which both think the same token likeliest."
        )
    return lines


def make_notes(comparison: Comparison, names: list[str]) -> list[str]:
    """What the reader should know of the figures."""
    notes = [
        "± is the standard error over tokens taken as independent. The change against the reference is measured on the "
        "same tokens, so that its error is far smaller than that of the two perplexities.",
        "Perplexities compare only within one setting and one tokenizer.",
    ]
    if any(result.blocks for result in comparison.results):
        notes.append(
            "Errors of layers are squared errors of their outputs over the squared outputs, the block reading the "
            "float model's states. Outputs of v and up are compared up to a factor per channel, because AWQ moves "
            "such factors from layer to layer."
        )
    notes += [
        f"{name}: {result.name}" for name, result in zip(names, comparison.results, strict=True) if name != result.name
    ]
    notes += [result.remark for result in comparison.results if result.remark]
    return [*dict.fromkeys(notes), f"Made by edgeawq {edgeawq.__version__}."]


def make_score_table(comparison: Comparison, names: list[str]) -> Table:
    """One row a model."""
    columns = ["model", "bits / weight", "MB", "perplexity", "change", "KL mean", "KL 99 %", "KL largest", "top-1"]
    rows = []
    for name, result in zip(names, comparison.results, strict=True):
        score, storage, divergence = result.score, result.storage, result.score.divergence
        change = "–"
        if score.log_ratio is not None and math.isfinite(score.log_ratio):
            change = f"{100 * math.expm1(min(score.log_ratio, 50)):+,.2f} %"
            if score.log_ratio_error is not None:
                change += f" ± {100 * score.log_ratio_error:.2f}"
        rows.append(
            [
                name + (" (reference)" if result.is_reference else ""),
                f"{storage.bits_per_weight:.3f}" if storage.bits_per_weight is not None else "–",
                f"{storage.file_bytes / 1e6:,.1f}" if storage.file_bytes is not None else "–",
                show_perplexity(score.perplexity, score.standard_error),
                change,
                *(
                    [
                        f"{divergence.mean:.4f}",
                        f"{divergence.percentiles['99']:.3f}",
                        f"{divergence.largest:.2f}",
                        f"{100 * divergence.top1_agreement:.1f} %",
                    ]
                    if divergence is not None
                    else ["–"] * 4
                ),
            ]
        )
    marked = frozenset(number for number, result in enumerate(comparison.results) if result.is_reference)
    return Table(columns, rows, marked=marked)


def show_perplexity(perplexity: float, error: float) -> str:
    """A perplexity with its standard error, as far as both say something."""
    if not math.isfinite(perplexity):
        return "∞"
    if perplexity >= 1000:
        return f"{perplexity:,.0f}" if perplexity < 1e6 else f"{perplexity:.2e}"
    return f"{perplexity:.3f} ± {error:.2f}"


def make_task_tables(comparison: Comparison, names: list[str]) -> list[Table]:
    """Accuracies, where tasks were asked."""
    tasks = list(dict.fromkeys(task for result in comparison.results for task in result.tasks))
    if not tasks:
        return []
    rows = []
    for name, result in zip(names, comparison.results, strict=True):
        cells = []
        for task in tasks:
            score = result.tasks.get(task)
            error = f" ± {100 * score.standard_error:.1f}" if score and score.standard_error is not None else ""
            cells.append(f"{100 * score.accuracy:.1f} %{error}" if score else "–")
        rows.append([name, *cells])
    return [Table(["accuracy", *tasks], rows)]


def make_size_chart(comparison: Comparison, names: list[str]) -> Chart | None:
    """Perplexity against bits per weight, with the reference as a line."""
    points = [
        {"model": name, "bits": result.storage.bits_per_weight, "perplexity": result.score.perplexity}
        for name, result in zip(names, comparison.results, strict=True)
        if result.storage.bits_per_weight is not None
        and math.isfinite(result.score.perplexity)
        and not result.is_reference
    ]
    reference = comparison.reference
    if not points:
        return None
    values = [float(str(point["perplexity"])) for point in points]
    scale: Spec = {"type": "log"} if max(values) > 4 * min(values) else {"zero": False}
    layers: list[Spec] = [make_point_layer(points, "perplexity", "perplexity", scale)]
    if reference is not None and math.isfinite(reference.score.perplexity):
        line = {"perplexity": reference.score.perplexity, "label": f"float: {reference.score.perplexity:.3f}"}
        layers += [
            {
                "data": {"values": [line]},
                "mark": {"type": "rule", "strokeDash": [5, 4]},
                "encoding": {"y": {"field": "perplexity", "type": "quantitative"}},
            },
            {
                "data": {"values": [line]},
                "mark": {"type": "text", "align": "left", "baseline": "bottom", "dx": 4, "dy": -4},
                "encoding": {
                    "x": {"value": 0},
                    "y": {"field": "perplexity", "type": "quantitative"},
                    "text": {"field": "label"},
                },
            },
        ]
    return Chart(
        "Perplexity against size",
        "Lower left is better. Bits per weight of the blocks' linear layers, scales and zeros included.",
        {"width": "container", "height": HEIGHT, "layer": layers},
    )


def make_divergence_chart(comparison: Comparison, names: list[str]) -> Chart | None:
    """Mean divergence against bits per weight."""
    points = [
        {"model": name, "bits": result.storage.bits_per_weight, "kl": max(result.score.divergence.mean, FLOOR)}
        for name, result in zip(names, comparison.results, strict=True)
        if result.score.divergence is not None
        and result.storage.bits_per_weight is not None
        and math.isfinite(result.score.divergence.mean)
    ]
    if not points:
        return None
    scale = {"type": "log"}
    return Chart(
        "Divergence against size",
        "How far the model's predictions are from the float model's; tells models apart that perplexity does not.",
        {
            "width": "container",
            "height": HEIGHT,
            "layer": [make_point_layer(points, "kl", "mean KL divergence, nats", scale)],
        },
    )


def make_point_layer(points: list[dict[str, object]], field: str, title: str, scale: Spec) -> Spec:
    """Points by bits per weight, each in its model's colour."""
    return {
        "data": {"values": points},
        "mark": {"type": "point", "filled": True, "size": 110, "opacity": 0.95},
        "encoding": {
            "x": {
                "field": "bits",
                "type": "quantitative",
                "title": "bits per weight",
                "scale": {"zero": False, "nice": True, "padding": 16},
            },
            "y": {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": {"tickCount": 5}},
            "color": {"field": "model", "type": "nominal", "title": None, "sort": None},
            "tooltip": [
                {"field": "model"},
                {"field": "bits", "title": "bits per weight", "format": ".3f"},
                {"field": field, "title": title, "format": ".4~f"},
            ],
        },
    }


def make_percentile_chart(comparison: Comparison, names: list[str]) -> Chart | None:
    """The divergence's percentiles."""
    points = [
        {"model": name, "percentile": f"{percent} %", "kl": max(value, FLOOR)}
        for name, result in zip(names, comparison.results, strict=True)
        if result.score.divergence is not None
        for percent, value in result.score.divergence.percentiles.items()
        if math.isfinite(value)
    ]
    if not points:
        return None
    return Chart(
        "Divergence of the worst tokens",
        "The share of tokens on the left diverges less than this. Rare large divergences are what users notice.",
        {
            "width": "container",
            "height": HEIGHT,
            "data": {"values": points},
            "mark": {"type": "line", "point": {"size": 50}, "strokeWidth": 2},
            "encoding": {
                "x": {
                    "field": "percentile",
                    "type": "ordinal",
                    "sort": None,
                    "title": "percentile",
                    "axis": {"labelAngle": 0},
                },
                "y": {
                    "field": "kl",
                    "type": "quantitative",
                    "title": "KL divergence, nats",
                    "scale": {"type": "log"},
                    "axis": {"tickCount": 5},
                },
                "color": {"field": "model", "type": "nominal", "title": None, "sort": None},
                "tooltip": [{"field": "model"}, {"field": "percentile"}, {"field": "kl", "format": ".4~g"}],
            },
        },
    )


def make_agreement_chart(comparison: Comparison, names: list[str]) -> Chart | None:
    """The share of tokens with the same likeliest token."""
    points = [
        {"model": name, "agreement": result.score.divergence.top1_agreement}
        for name, result in zip(names, comparison.results, strict=True)
        if result.score.divergence is not None
    ]
    if not points:
        return None
    encoding = {
        "y": {"field": "model", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 150}},
        "x": {
            "field": "agreement",
            "type": "quantitative",
            "title": "same likeliest token",
            "axis": {"format": ".0%", "values": [0, 0.25, 0.5, 0.75, 1]},
            "scale": {"domain": [0, 1.35], "nice": False},
        },
        "tooltip": [{"field": "model"}, {"field": "agreement", "format": ".2%"}],
    }
    return Chart(
        "Agreement with the float model",
        "How often both would write the same next token.",
        {
            "width": "container",
            "height": BAR_HEIGHT * len(points),
            "data": {"values": points},
            "layer": [
                {
                    "mark": {"type": "bar", "height": {"band": 0.6}},
                    "encoding": {
                        **encoding,
                        "color": {"field": "model", "type": "nominal", "sort": None, "legend": None},
                    },
                },
                {
                    "mark": {"type": "text", "align": "left", "dx": 6},
                    "encoding": {**encoding, "text": {"field": "agreement", "format": ".1%"}},
                },
            ],
        },
    )


def make_layer_chart(compared: list[tuple[str, ModelResult]]) -> Chart:
    """Error of every layer's output, one model at a time."""
    points = [
        {
            "model": name,
            "block": number,
            "layer": module.rpartition(".")[2].removesuffix("_proj"),
            "error": 100 * max(error, FLOOR),
        }
        for name, result in compared
        for number, block in enumerate(result.blocks)
        for module, error in block.layers.items()
    ]
    names = [name for name, _ in compared]
    selection: Spec = {"name": "chosen", "value": names[0]}
    if len(names) > 1:
        selection = {**selection, "bind": {"input": "select", "options": names, "name": "Model: "}}
    return Chart(
        "Error by layer",
        "Error of each linear layer's output in percent of its energy, the block reading the float model's states.",
        {
            "width": "container",
            "height": HEIGHT + 40,
            "params": [selection],
            "data": {"values": points},
            "transform": [{"filter": "datum.model == chosen"}],
            "mark": {"type": "line", "point": {"size": 30}, "strokeWidth": 1.8},
            "encoding": {
                "x": {
                    "field": "block",
                    "type": "quantitative",
                    "title": "block",
                    "scale": {"nice": False},
                    "axis": {"tickMinStep": 1, "format": "d"},
                },
                "y": {
                    "field": "error",
                    "type": "quantitative",
                    "title": "error, %",
                    "scale": {"type": "log"},
                    "axis": {"tickCount": 5},
                },
                "color": {
                    "field": "layer",
                    "type": "nominal",
                    "title": None,
                    "sort": [name.removesuffix("_proj") for name in LAYER_ORDER],
                    "legend": {"symbolType": "stroke"},
                },
                "tooltip": [
                    {"field": "layer"},
                    {"field": "block"},
                    {"field": "error", "format": ".3~g", "title": "error, %"},
                ],
            },
        },
        is_wide=True,
        label_pixels=NAME_PIXELS,
    )


def make_block_chart(compared: list[tuple[str, ModelResult]]) -> Chart:
    """Error of every block by itself."""
    points = [
        {"model": name, "block": number, "error": 100 * max(block.block, FLOOR)}
        for name, result in compared
        for number, block in enumerate(result.blocks)
    ]
    return Chart(
        "Error by block",
        "Error of each block's output in percent of what the block adds to its input.",
        make_line_spec(points, "error, %"),
    )


def make_drift_chart(compared: list[tuple[str, ModelResult]]) -> Chart:
    """Error of the hidden states on the way through the model."""
    points = [
        {"model": name, "block": number, "error": 100 * max(block.drift, FLOOR)}
        for name, result in compared
        for number, block in enumerate(result.blocks)
    ]
    return Chart(
        "Error so far",
        "Error of the hidden states after each block, every model on its own from the first block on.",
        make_line_spec(points, "error so far, %"),
    )


def make_line_spec(points: list[dict[str, object]], title: str) -> Spec:
    """A line for every model over the blocks."""
    return {
        "width": "container",
        "height": HEIGHT,
        "data": {"values": points},
        "mark": {"type": "line", "point": {"size": 26}, "strokeWidth": 2},
        "encoding": {
            "x": {
                "field": "block",
                "type": "quantitative",
                "title": "block",
                "scale": {"nice": False},
                "axis": {"tickMinStep": 1, "format": "d"},
            },
            "y": {
                "field": "error",
                "type": "quantitative",
                "title": title,
                "scale": {"type": "log"},
                "axis": {"tickCount": 5},
            },
            "color": {
                "field": "model",
                "type": "nominal",
                "title": None,
                "sort": None,
                "legend": {"symbolType": "stroke"},
            },
            "tooltip": [{"field": "model"}, {"field": "block"}, {"field": "error", "format": ".3~g", "title": title}],
        },
    }


def make_histogram_chart(title: str, text: str, histograms: dict[str, Histogram], axis: str, unit: str) -> Chart:
    """Counts over bins as steps, one line for each histogram; empty bins interrupt it."""
    points = [
        {
            "name": name.removesuffix("_proj"),
            "value": round(histogram.low + (number + 0.5) * histogram.step, 6),
            "count": count if count else None,
        }
        for name, histogram in histograms.items()
        for number, count in enumerate(histogram.counts)
    ]
    return Chart(
        title,
        text,
        {
            "width": "container",
            "height": HEIGHT,
            "data": {"values": points},
            "mark": {
                "type": "line",
                "interpolate": "step",
                "strokeWidth": 1.6,
                "invalid": "break-paths-filter-domains",
            },
            "encoding": {
                "x": {"field": "value", "type": "quantitative", "title": axis},
                "y": {
                    "field": "count",
                    "type": "quantitative",
                    "title": unit,
                    "scale": {"type": "log"},
                    "axis": {"format": ".1~s", "tickCount": 5},
                },
                "color": {
                    "field": "name",
                    "type": "nominal",
                    "title": None,
                    "sort": None,
                    "legend": {"symbolType": "stroke"},
                },
                "tooltip": [{"field": "name"}, {"field": "value", "title": axis}, {"field": "count", "title": unit}],
            },
        },
        label_pixels=NAME_PIXELS,
    )
