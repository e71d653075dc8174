"""The tables of `edgeawq eval --html`."""

from __future__ import annotations

import math

from edgeawq.quantize.comparison import Comparison
from edgeawq.quantize.scores import Divergence, ModelScore
from edgeawq.reports.page import Table

NOTHING = "–"


def make_score_table(comparison: Comparison, names: list[str]) -> Table:
    """One row a model."""
    columns = ["model", "bits / weight", "MB", "perplexity", "change", "KL mean", "KL 99 %", "top-1"]
    rows = []
    for name, result in zip(names, comparison.results, strict=True):
        score, storage = result.score, result.storage
        rows.append(
            [
                name + (" (reference)" if result.is_reference else ""),
                f"{storage.bits_per_weight:.3f}" if storage.bits_per_weight is not None else NOTHING,
                f"{storage.file_bytes / 1e6:,.1f}" if storage.file_bytes is not None else NOTHING,
                show_perplexity(score.perplexity, score.standard_error),
                show_change(score),
                *show_divergence(score.divergence),
            ]
        )
    marked = frozenset(number for number, result in enumerate(comparison.results) if result.is_reference)
    return Table(columns, rows, marked=marked)


def show_change(score: ModelScore) -> str:
    """The change of perplexity against the reference, with its standard error."""
    if score.log_ratio is None or not math.isfinite(score.log_ratio):
        return NOTHING
    change = f"{100 * math.expm1(min(score.log_ratio, 50)):+,.2f} %"
    return change if score.log_ratio_error is None else f"{change} ± {100 * score.log_ratio_error:.2f}"


def show_divergence(divergence: Divergence | None) -> list[str]:
    """Mean and 99th percentile of the divergence, and how often the likeliest token is the same."""
    if divergence is None:
        return [NOTHING] * 3
    share = f"{100 * divergence.top1_agreement:.1f} %"
    return [f"{divergence.mean:.4f}", f"{divergence.percentiles['99']:.3f}", share]


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
            cells.append(f"{100 * score.accuracy:.1f} %{error}" if score else NOTHING)
        rows.append([name, *cells])
    return [Table(["accuracy", *tasks], rows)]
