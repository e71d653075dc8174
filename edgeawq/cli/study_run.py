"""What the studies of `edgeawq study` have in common: models, texts, progress, output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeawq.errors import UsageError

if TYPE_CHECKING:
    import torch

    from edgeawq.quantize.study import OnStep, Study
    from edgeawq.quantize.study_channels import Bench, ChannelMeans

CALIBRATION_CHUNK = 512
LAYER_TOKENS = 1024


def describe_trials(given: dict[str, Any], n_tokens: int) -> str:
    """The setting of the calibration studies in words."""
    return (
        f"{given['bits']} bits in groups of {given['group_size']}, head in float; {n_tokens:,} tokens in chunks of "
        f"{given['chunk']}, each on its own"
    )


@contextmanager
def prepare(
    model: str, text: Path, calib: Path | None, given: dict[str, Any]
) -> Iterator[tuple[Bench, ChannelMeans, torch.Tensor, str, OnStep]]:
    """Model, reference and channel means for the studies of channels, and the setting in words."""
    import torch

    from edgeawq.quantize.calibration import choose_sequences
    from edgeawq.quantize.evaluate import keep_reference, score_model
    from edgeawq.quantize.parallel import start_workers
    from edgeawq.quantize.perplexity import read_tokens, stream_model
    from edgeawq.quantize.scores import EvaluationSetting, make_windows
    from edgeawq.quantize.settings import choose_group_size
    from edgeawq.quantize.study_channels import Bench, measure_channel_means

    check_common(given)
    setting = EvaluationSetting(given["tokens"], given["chunk"], given["chunk"])
    wanted = given["calib_tokens"]
    if wanted < CALIBRATION_CHUNK:
        raise UsageError(f"{wanted} calibration tokens are too few; at least {CALIBRATION_CHUNK} are needed")
    checkpoint = open_float(model)
    tokens = read_tokens(text, checkpoint, setting.n_tokens if calib else setting.n_tokens + 64 * wanted)
    rest = read_tokens(calib, checkpoint, 64 * wanted) if calib else tokens[setting.n_tokens :]
    if len(rest) < CALIBRATION_CHUNK:
        raise UsageError(
            f"{text} holds {len(tokens):,} tokens: {setting.n_tokens:,} to evaluate on and at least "
            f"{CALIBRATION_CHUNK} to calibrate on are needed",
            remedy="give a longer text, fewer --tokens, or a calibration text with --calib",
        )
    sequences = rest[: len(rest) // CALIBRATION_CHUNK * CALIBRATION_CHUNK].view(-1, CALIBRATION_CHUNK)
    chunks = choose_sequences(sequences, wanted, given["seed"])
    windows = make_windows(tokens, setting)
    group_size = choose_group_size(checkpoint.config, given["group_size"])
    with bar_of_steps() as on_step, start_workers(given["threads"]) as workers, torch.no_grad():
        on_step("channel means", 0, 1)
        source = stream_model(checkpoint)
        means = measure_channel_means(source, chunks, workers)
        with keep_reference(source, windows) as states:
            base = score_model(source, windows, workers, fill=states)
            bench = Bench(source, windows, states, base, workers, given["bits"], group_size)
            words = (
                f"{checkpoint.name}, {given['bits']} bits in groups of {group_size}, head in float; {text.name}: "
                f"{windows.n_scored:,} predicted tokens, {setting.describe()}; {chunks.numel():,} tokens calibrate"
            )
            yield bench, means, chunks[: max(1, LAYER_TOKENS // CALIBRATION_CHUNK)], words, on_step


@contextmanager
def prepare_trials(
    model: str, files: dict[str, Path], given: dict[str, Any]
) -> Iterator[tuple[Any, list[Any], OnStep]]:
    """Settings, domains and a temporary folder for the studies that run the whole quantizer."""
    import tempfile

    from edgeawq.quantize.scores import EvaluationSetting
    from edgeawq.quantize.settings import QuantizeSettings
    from edgeawq.quantize.study_calibration import Trials, split_domain

    check_common(given)
    setting = EvaluationSetting(given["tokens"], given["chunk"], given["chunk"])
    settings = QuantizeSettings(
        bits=given["bits"],
        group_size=given["group_size"],
        head_bits=16,
        seed=given["seed"],
        calibration_tokens=given.get("calib_tokens") or QuantizeSettings().calibration_tokens,
    )
    checkpoint = open_float(model)
    with tempfile.TemporaryDirectory(prefix="edgeawq-study-") as name, bar_of_steps() as on_step:
        folder = Path(name)
        found = [split_domain(label, file, checkpoint, setting, folder) for label, file in files.items()]
        yield Trials(checkpoint, settings, folder, given["threads"]), found, on_step


def open_float(model: str) -> Any:
    """A float model; raises UsageError for a quantized one."""
    from edgeawq.checkpoints.open_model import open_model

    checkpoint = open_model(model)
    if checkpoint.quantization is not None:
        raise UsageError(f"{model} is already quantized", remedy="give the float model that it was made from")
    return checkpoint


def check_common(given: dict[str, Any]) -> None:
    """Raise UsageError for options that make no sense, before any work."""
    if given["threads"] < 0:
        raise UsageError(f"{given['threads']} threads make no sense", remedy="0 takes every CPU")
    if not 2 <= given["bits"] <= 8:
        raise UsageError(f"{given['bits']} bits are not possible", remedy="choose 2 … 8 bits")
    if not 0 <= given["seed"] < 1 << 30:
        raise UsageError(f"the seed {given['seed']} is not between 0 and {(1 << 30) - 1}")
    if given["html"] is not None:
        from edgeawq.reports.page import check_page

        check_page(given["html"])


@contextmanager
def bar_of_steps() -> Iterator[OnStep]:
    """A progress bar whose text says which variant is measured."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from edgeawq.cli.console import get_error_console

    with Progress(
        TextColumn("{task.description:<30.30}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=get_error_console(),
        speed_estimate_period=600,
    ) as bar:
        row = bar.add_task("reading", total=1)

        def show_step(label: str, done: int, total: int) -> None:
            bar.update(row, description=label, completed=done, total=total)

        yield show_step


def show(studies: list[Study], given: dict[str, Any]) -> None:
    """Write the outcome where it was asked for."""
    from edgeawq.cli.console import get_console
    from edgeawq.cli.study_table import make_study_table

    html = given["html"]
    if html is not None:
        from edgeawq.reports.page import write_page
        from edgeawq.reports.study_page import make_study_page

        write_page(html, make_study_page(studies))
    if given["as_json"]:
        click.echo(json.dumps([study.describe() for study in studies], allow_nan=False))
        return
    console = get_console()
    for study in studies:
        console.print(f"[bold]{study.title}[/]\n{study.setting}", highlight=False)
        console.print(make_study_table(study))
    if html is not None:
        console.print(f"page: {html}", highlight=False)
