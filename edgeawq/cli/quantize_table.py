"""What `edgeawq quantize` prints: a table of layers, and a summary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from edgeawq.quantize.block import BlockOutcome, LayerOutcome
    from edgeawq.quantize.report import QuantizationReport


def make_layer_table(report: QuantizationReport) -> Table:
    """Two lines a block, fit for 80 columns: errors of RTN → the method, then the exponent r and the mean clip.

    Where layers differ in bits, a third line has them.
    """
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"Error of each layer's output in % of its energy, RTN → {report.settings.method}; "
        "below: exponent r of its scales, mean clip",
        title_style="",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("", justify="right", no_wrap=True, min_width=2)
    table.add_column("block", justify="right", no_wrap=True)
    for name in group_layers(report.blocks[0]):
        table.add_column(name.removesuffix("_proj"), justify="right", no_wrap=True)
    differs = len({layer.bits for block in report.blocks for layer in block.layers.values()}) > 1
    for number, block in enumerate(report.blocks):
        cells = [describe_cell(layers, differs) for layers in group_layers(block).values()]
        loss = f"{short(100 * block.rtn_loss)}→{short(100 * block.loss)}"
        table.add_row(str(number), f"{loss}\n[yellow]reverted[/]" if block.is_reverted else loss, *cells)
    return table


def group_layers(block: BlockOutcome) -> dict[str, list[LayerOutcome]]:
    """The layers of a block by their projection; experts have several of each."""
    found: dict[str, list[LayerOutcome]] = {}
    for module, layer in block.layers.items():
        found.setdefault(module.rpartition(".")[2], []).append(layer)
    return found


def describe_cell(layers: list[LayerOutcome], has_bits: bool) -> str:
    """The lines of one projection in a block, means where there are several layers."""

    def mean(name: str) -> float:
        return sum(float(getattr(layer, name)) for layer in layers) / len(layers)

    lines = [
        f"{short(100 * mean('rtn_error'))}→{short(100 * mean('error'))}",
        f"[dim]{short(mean('activation_exponent'))} {short(mean('mean_clip'))}[/]",
    ]
    if has_bits:
        lines.append(f"[dim]{'/'.join(map(str, sorted({layer.bits for layer in layers})))} bits[/]")
    return "\n".join(lines)


def short(value: float) -> str:
    """Three characters where that is enough: .61, -.05, 3.4, 12."""
    size = abs(value)
    if size < 0.995:
        return f"{value:.2f}".replace("0.", ".", 1)
    return f"{value:.1f}" if size < 9.95 else f"{value:.0f}"


def make_summary(report: QuantizationReport, output: Path | None, next_command: str) -> Table:
    """What was made, where, how good it is, and what to do with it; the two of them only where `output` is given."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    settings = report.settings
    if output is not None:
        table.add_row("checkpoint", str(output))
    groups = "one group a row" if report.group_size < 0 else f"groups of {report.group_size}"
    kind = ", symmetric" if settings.is_symmetric else ""
    bits = f"{settings.bits} bits" if settings.target_bpw is None else f"{settings.target_bpw:g} bits on average"
    table.add_row("method", f"{settings.method}, {bits}, {groups}{kind}")
    if settings.bits_for:
        table.add_row("other bits", ", ".join(f"{pattern}: {bits}" for pattern, bits in settings.bits_for))
    if settings.kept_share:
        table.add_row(
            "in float16",
            f"{100 * settings.kept_share:g} % of the input channels, by {settings.criterion.replace('-', ' ')}",
        )
    table.add_row("bits per weight", f"{report.bits_per_weight:.3f} in the blocks")
    head = "float16" if report.head_group_size is None else f"{settings.head_bits} bits"
    table.add_row("embedding and head", head)
    if report.calibration is not None:
        calibration = report.calibration
        table.add_row("calibration", f"{calibration.n_tokens} tokens, {calibration.source}")
    if report.reverted_blocks:
        table.add_row(
            "left at RTN",
            f"blocks {', '.join(map(str, report.reverted_blocks))}: {settings.method} did not lower the loss",
        )
    if report.evaluation is not None:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in report.evaluation.perplexity.items())
        table.add_row("perplexity", f"{figures} ({report.evaluation.n_tokens} tokens of {report.evaluation.text})")
    if report.starved_experts:
        table.add_row("starved experts", describe_starved(report))
    if output is not None:
        table.add_row("next", next_command)
    return table


def describe_starved(report: QuantizationReport) -> str:
    """Which experts tokens had to be forced through; the report names them all."""
    counts = {number: len(block.starved_experts) for number, block in enumerate(report.blocks) if block.starved_experts}
    blocks = ", ".join(f"{number}: {count}" for number, count in list(counts.items())[:8])
    more = f", and {len(counts) - 8} blocks more" if len(counts) > 8 else ""
    return (
        f"{report.starved_experts} saw too few tokens and were calibrated on forced ones "
        f"(block: experts; {blocks}{more}); more --calib-tokens help"
    )
