"""The page of `edgeawq eval --html`."""

from __future__ import annotations

from collections.abc import Sequence

import edgeawq
from edgeawq.quantize.comparison import Comparison, shorten_names
from edgeawq.reports.evaluation_charts import (
    make_agreement_chart,
    make_divergence_chart,
    make_histogram_chart,
    make_percentile_chart,
    make_size_chart,
)
from edgeawq.reports.evaluation_tables import make_score_table, make_task_tables
from edgeawq.reports.layer_charts import make_block_chart, make_drift_chart, make_layer_chart
from edgeawq.reports.page import Chart, Columns, Page, Part, Section


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
