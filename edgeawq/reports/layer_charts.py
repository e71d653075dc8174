"""The charts of `edgeawq eval --html` that follow models from block to block."""

from __future__ import annotations

from collections.abc import Callable

from edgeawq.quantize.comparison import ModelResult
from edgeawq.quantize.layer_errors import BlockErrors
from edgeawq.reports.chart_parts import (
    FLOOR,
    HEIGHT,
    NAME_PIXELS,
    Points,
    list_tooltip,
    make_block_axis,
    make_chart,
    make_colour,
    make_line_mark,
    make_log_axis,
)
from edgeawq.reports.page import Chart, Spec

Compared = list[tuple[str, ModelResult]]


def average_kinds(block: BlockErrors) -> dict[str, float]:
    """The errors of a block by projection: the mean where there are several, as experts have."""
    found: dict[str, list[float]] = {}
    for module, error in block.layers.items():
        found.setdefault(module.rpartition(".")[2].removesuffix("_proj"), []).append(error)
    return {kind: sum(errors) / len(errors) for kind, errors in found.items()}


def make_layer_chart(compared: Compared) -> Chart:
    """Error of every layer's output, one model at a time."""
    points: Points = [
        {"model": name, "block": number, "layer": kind, "error": 100 * max(error, FLOOR)}
        for name, result in compared
        for number, block in enumerate(result.blocks)
        for kind, error in average_kinds(block).items()
    ]
    names = [name for name, _ in compared]
    selection: Spec = {"name": "chosen", "value": names[0]}
    if len(names) > 1:
        selection = {**selection, "bind": {"input": "select", "options": names, "name": "Model: "}}
    encoding = {
        "x": make_block_axis(),
        "y": make_log_axis("error", "error, %"),
        "color": make_colour("layer", legend={"symbolType": "stroke"}),
        "tooltip": list_tooltip(["layer", "block"], error=("error, %", ".3~g")),
    }
    return Chart(
        "Error by layer",
        "Error of each linear layer's output in percent of its energy, the block reading the float model's states.",
        make_chart(
            points,
            make_line_mark(1.8, 30),
            encoding,
            height=HEIGHT + 40,
            params=[selection],
            transform=[{"filter": "datum.model == chosen"}],
        ),
        is_wide=True,
        label_pixels=NAME_PIXELS,
    )


def make_block_chart(compared: Compared) -> Chart:
    """Error of every block by itself."""
    return Chart(
        "Error by block",
        "Error of each block's output in percent of what the block adds to its input.",
        make_block_lines(compared, lambda block: block.block, "error, %"),
    )


def make_drift_chart(compared: Compared) -> Chart:
    """Error of the hidden states on the way through the model."""
    return Chart(
        "Error so far",
        "Error of the hidden states after each block, every model on its own from the first block on.",
        make_block_lines(compared, lambda block: block.drift, "error so far, %"),
    )


def make_block_lines(compared: Compared, measure: Callable[[BlockErrors], float], title: str) -> Spec:
    """A line for every model over the blocks."""
    points: Points = [
        {"model": name, "block": number, "error": 100 * max(measure(block), FLOOR)}
        for name, result in compared
        for number, block in enumerate(result.blocks)
    ]
    encoding = {
        "x": make_block_axis(),
        "y": make_log_axis("error", title),
        "color": make_colour(lines=True),
        "tooltip": list_tooltip(["model", "block"], error=(title, ".3~g")),
    }
    return make_chart(points, make_line_mark(), encoding)
