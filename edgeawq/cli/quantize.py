"""`edgeawq quantize`: turn a float model into a quantized checkpoint."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeawq.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from edgeawq.checkpoints.model import Checkpoint
    from edgeawq.quantize.cluster import Cluster
    from edgeawq.quantize.pipeline import Progress
    from edgeawq.quantize.settings import QuantizeSettings

STAGES = {
    "calibrate": "calibration text",
    "measure": "sensitivity",
    "quantize": "blocks",
    "evaluate": "perplexity",
    "write": "writing",
}
DEFAULT_STEPS = 100


class GroupSize(click.ParamType):  # type: ignore[type-arg]
    """A number of weights, or `channel` for one group a row."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number; -1 for `channel`."""
        text = str(value).strip().lower()
        if text in ("channel", "-1"):
            return -1
        try:
            return int(text)
        except ValueError:
            raise UsageError(
                f"{value!r} is no group size", remedy="give 32, 64, 128, or `channel` for one group a row"
            ) from None


def split_override(text: str) -> tuple[str, int]:
    """PATTERN=BITS as (pattern, bits); raises UsageError where it is not that."""
    pattern, equals, bits = text.rpartition("=")
    if not equals or not pattern or not bits.strip().isdigit():
        raise UsageError(f"{text!r} is not PATTERN=BITS", remedy="write for example --bits-for down_proj=4")
    return pattern, int(bits)


@click.command(name="quantize")
@click.argument("model")
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write.")
@click.option(
    "--method",
    default="awq",
    show_default=True,
    metavar="NAME",
    help="rtn, awq, gptq, awq+gptq, awq+round or awq+gptq+round: from fast to good; rtn looks at the weights only. "
    "mixed, for analysis only: some channels stay in float16.",
)
@click.option("--bits", type=int, default=4, show_default=True, help="Bits of a weight in the blocks: 2, 3, 4 or 8.")
@click.option(
    "--bits-for",
    multiple=True,
    metavar="PATTERN=BITS",
    help="Other bits for layers whose name holds PATTERN (a regular expression), such as down_proj=8; repeatable.",
)
@click.option(
    "--group-size",
    type=GroupSize(),
    default=128,
    show_default=True,
    metavar="N|channel",
    help="Weights that share a scale; the largest power of two up to this that fits every layer. channel: whole rows.",
)
@click.option(
    "--target-bpw",
    type=float,
    metavar="BITS",
    help="Average bits per weight, scales included, such as 3.5: bits by layer from measured sensitivity.",
)
@click.option(
    "--keep-percent",
    type=float,
    metavar="PERCENT",
    help="With mixed: input channels of each layer that stay in float16 [default: 1].",
)
@click.option(
    "--keep-by",
    metavar="CRITERION",
    help="With mixed: how they are chosen, by activation, weight-norm or random [default: activation].",
)
@click.option("--symmetric", is_flag=True, help="Grids around zero, without zero points.")
@click.option(
    "--act-order/--no-act-order", default=None, help="GPTQ takes the columns that see most first [with awq+gptq]."
)
@click.option(
    "--rounding-steps", type=int, default=DEFAULT_STEPS, show_default=True, help="Steps of learned rounding a block."
)
@click.option(
    "--head-bits", type=int, default=8, show_default=True, help="Bits of embedding and head: 4, 8, or 16 for float."
)
@click.option(
    "--calib",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="Calibration text: plain text, or JSON Lines with `text` or `messages`. Without it, the model writes its own.",
)
@click.option("--calib-tokens", type=int, default=4096, show_default=True, help="Tokens of calibration text.")
@click.option("--seqlen", type=int, default=512, show_default=True, help="Tokens of one calibration sequence.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same bytes.")
@click.option(
    "--eval",
    "evaluation",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Measure perplexity on this text: float, RTN and the method.",
)
@click.option("--eval-tokens", type=int, default=12288, show_default=True, help="Tokens of it, in chunks of 1024.")
@click.option(
    "--activation-memory",
    type=float,
    default=4.0,
    show_default=True,
    metavar="GIB",
    help="Memory for activations of the calibration text; more go to files beside the output.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Quantize the blocks on the Dask cluster there, such as tcp://127.0.0.1:8786, whose workers see these files.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="cpu, cuda, or names such as cuda:0,cuda:1; auto takes every CUDA device, and the CPU where there is none.",
)
@click.option("--threads", type=int, default=0, help="Threads; 0 takes every CPU.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier checkpoint of edgeawq.")
@click.option("--json", "as_json", is_flag=True, help="Write the report as JSON.")
@click.option("--as-a-step", "is_step", is_flag=True, hidden=True)  # of a push: what comes next is not the user's
def command(
    model: str,
    output: Path,
    method: str,
    bits: int,
    bits_for: tuple[str, ...],
    group_size: int,
    target_bpw: float | None,
    keep_percent: float | None,
    keep_by: str | None,
    symmetric: bool,
    act_order: bool | None,
    rounding_steps: int,
    head_bits: int,
    calib: Path | None,
    calib_tokens: int,
    seqlen: int,
    seed: int,
    evaluation: Path | None,
    eval_tokens: int,
    activation_memory: float,
    scheduler: str | None,
    device: str,
    threads: int,
    overwrite: bool,
    as_json: bool,
    is_step: bool,
) -> None:
    """Turn a float model into a quantized checkpoint.

    MODEL is a Hugging Face folder, a GGUF file, a hub id, or embedded:smollm2-135m-instruct. The output is an AutoAWQ
    checkpoint ("gemm"), or with other bits than 4 a GPTQ one (version 2), which other tools read as well, with
    quantization_report.json beside it.

    \b
    Example:
      edgeawq quantize embedded:smollm2-135m-instruct -o smollm2-awq
      edgeawq quantize ./Llama-3.2-1B -o llama-awq --calib notes.txt --eval test.txt
      edgeawq quantize ./Llama-3.2-1B -o llama-w3 --method awq+round --bits 3 --bits-for down_proj=4
      edgeawq quantize ./Llama-3.2-1B -o study --method mixed --bits 3 --keep-percent 0.1 --keep-by random
    """
    from edgeawq.checkpoints.open_model import open_model
    from edgeawq.cli.console import get_console, get_error_console
    from edgeawq.cli.quantize_table import make_layer_table, make_summary
    from edgeawq.quantize.pipeline import Evaluation, quantize_model
    from edgeawq.quantize.settings import QuantizeSettings

    settings = QuantizeSettings(
        method=method,
        bits=bits,
        group_size=group_size,
        head_bits=head_bits,
        calibration_tokens=calib_tokens,
        seqlen=seqlen,
        seed=seed,
        is_symmetric=symmetric,
        act_order=act_order,
        bits_for=tuple(split_override(text) for text in bits_for),
        rounding_steps=rounding_steps,
        target_bpw=target_bpw,
        keep_percent=keep_percent,
        keep_by=keep_by,
    )
    if calib is not None and method == "rtn":
        raise UsageError("--calib has no meaning with --method rtn, which looks at the weights only")
    if threads < 0:
        raise UsageError(f"{threads} threads make no sense", remedy="0 takes every CPU")
    if not activation_memory >= 0:
        raise UsageError(f"{activation_memory} GiB for activations make no sense", remedy="0 keeps them all in files")
    with connect(scheduler) as cluster, make_bar(get_error_console()) as bar:
        checkpoint = open_model(model)
        report = quantize_model(
            checkpoint,
            output,
            settings,
            calibration=calib,
            evaluation=Evaluation(evaluation, eval_tokens) if evaluation else None,
            overwrite=overwrite,
            on_progress=show_progress(bar),
            n_threads=threads,
            activation_bytes=int(activation_memory * (1 << 30)),
            cluster=cluster,
            reference=str(Path(model).absolute()) if Path(model).exists() else model,
            device=device,
        )
    if as_json:
        click.echo(json.dumps(report.describe()))
        return
    console = get_console()
    for note in report.notes:
        console.print(f"[yellow]note:[/] {note}", highlight=False)
    if report.blocks:
        console.print(make_layer_table(report))
    console.print(make_summary(report, None if is_step else output, choose_next(checkpoint, settings, model, output)))


def choose_next(checkpoint: Checkpoint, settings: QuantizeSettings, model: str, output: Path) -> str:
    """The command that the output is made for."""
    from edgeawq.quantize.methods import METHODS

    if checkpoint.config.experts is not None or METHODS[settings.method].keeps_channels:
        return f"edgeawq eval {model} {output} --text FILE"
    return f"edgeawq pack {output} --device pi4"


@contextmanager
def connect(address: str | None) -> Iterator[Cluster | None]:
    """The cluster at an address; none without one."""
    if address is None:
        yield None
        return
    from edgeawq.quantize.cluster import connect_cluster

    with connect_cluster(address) as cluster:
        yield cluster


def make_bar(console: object) -> Bar:
    """A progress bar with time left, memory, and a word on the last step; fits 80 columns."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from edgeawq.cli.progress import LateBar

    return LateBar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        TextColumn("{task.fields[detail]}"),
        console=console,  # type: ignore[arg-type]
    )


def show_progress(bar: Bar) -> Callable[[Progress], None]:
    """What a run calls after every step: one row of the bar for each stage."""
    rows: dict[str, int] = {}

    def show(progress: Progress) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)  # kibibytes on Linux
        detail = "  ".join(filter(None, [progress.detail, f"{peak:.1f} GiB"]))
        if progress.stage not in rows:
            rows[progress.stage] = int(bar.add_task(STAGES.get(progress.stage, progress.stage), detail=detail))
        bar.update(
            rows[progress.stage],  # type: ignore[arg-type]
            completed=progress.done,
            total=progress.total,
            detail=detail,
        )

    return show
