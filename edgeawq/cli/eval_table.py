"""The tables of `edgeawq eval`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from edgeawq.quantize.comparison import Comparison, ModelResult

COLUMNS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_score_table(comparison: Comparison) -> Table:
    """One row a model; fits 80 columns with names of 20 characters, longer ones wrap."""
    from rich import box
    from rich.table import Table

    compares = any(result.score.divergence is not None for result in comparison.results)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold", ratio=1)
    table.add_column("bits/w", justify="right", no_wrap=True)
    table.add_column("MB", justify="right", no_wrap=True)
    table.add_column("perplexity", justify="right", no_wrap=True)
    if compares:
        table.add_column("change", justify="right", no_wrap=True)
        table.add_column("KL mean", justify="right", no_wrap=True)
        table.add_column("99 %", justify="right", no_wrap=True)
        table.add_column("top-1", justify="right", no_wrap=True)
    for name, result in zip(name_results(comparison), comparison.results, strict=True):
        table.add_row(name, *score_cells(result, compares), style="bold" if result.is_reference else "")
    return table


def name_results(comparison: Comparison) -> list[str]:
    """Short names of the models, in their order."""
    from edgeawq.quantize.comparison import shorten_names

    return shorten_names([result.name for result in comparison.results])


def describe_setting(comparison: Comparison) -> str:
    """What was measured, in words."""
    words = [f"{comparison.text}, {comparison.n_scored:,} predicted tokens", comparison.setting.describe()]
    if comparison.reference is not None:
        words.append(f"KL divergence (nats) and top-1 agreement: against {comparison.reference.name}")
    return "\n".join(words)


def score_cells(result: ModelResult, compares: bool) -> list[str]:
    """The cells of one row, after the name."""
    score, storage = result.score, result.storage
    error = f" [dim]±{score.standard_error:.2f}[/]" if score.standard_error < 100 else ""
    cells = [
        f"{storage.bits_per_weight:.2f}" if storage.bits_per_weight is not None else "–",
        f"{storage.file_bytes / 1e6:,.0f}" if storage.file_bytes is not None else "–",
        f"{show_number(score.perplexity)}{error}",
    ]
    if not compares:
        return cells
    if score.divergence is None:
        return [*cells, "–", "–", "–", "–"]
    change = "–" if score.log_ratio is None else show_change(score.log_ratio)
    return [
        *cells,
        change,
        f"{score.divergence.mean:.4f}",
        f"{score.divergence.percentiles['99']:.3f}",
        f"{100 * score.divergence.top1_agreement:.1f} %",
    ]


def show_change(log_ratio: float) -> str:
    """The ratio of two perplexities as a change in percent, or as a factor where it is large."""
    if log_ratio > math.log(10):
        return f"×{math.exp(log_ratio):.3g}" if log_ratio < 700 else "×∞"
    return f"{100 * math.expm1(log_ratio):+.2f} %"


def show_number(perplexity: float) -> str:
    """Three digits after the point for what people compare, fewer for what is broken."""
    if not math.isfinite(perplexity):
        return "∞"
    return (
        f"{perplexity:.3f}" if perplexity < 1000 else f"{perplexity:,.0f}" if perplexity < 1e6 else f"{perplexity:.2e}"
    )


def make_task_table(comparison: Comparison) -> Table:
    """Accuracy in percent of every task for every model."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = list(dict.fromkeys(task for result in comparison.results for task in result.tasks))
    table.add_column("model", overflow="fold")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for model, result in zip(name_results(comparison), comparison.results, strict=True):
        cells = []
        for name in names:
            task = result.tasks.get(name)
            error = f" [dim]±{100 * task.standard_error:.1f}[/]" if task and task.standard_error is not None else ""
            cells.append(f"{100 * task.accuracy:.1f}{error}" if task else "–")
        table.add_row(model, *cells)
    return table


def make_error_table(result: ModelResult) -> Table:
    """One line a block: the errors of its layers' outputs, of its own, and of the hidden state that far."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{result.name}: error in % of each output's energy",
        title_style="",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("", *(column.removesuffix("_proj") for column in COLUMNS), "block", "so far"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, block in enumerate(result.blocks):
        layers = {module.rpartition(".")[2]: error for module, error in block.layers.items()}
        cells = [show_share(layers[column]) for column in COLUMNS]
        table.add_row(str(number), *cells, show_share(block.block), show_share(block.drift))
    return table


def show_share(share: float) -> str:
    """A share in percent with two or three digits."""
    percent = 100 * share
    return f"{percent:.3f}" if percent < 0.1 else f"{percent:.2f}" if percent < 10 else f"{percent:.0f}"
