"""`edgeawq study`: the AWQ paper's experiments on a model of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgeawq.cli.study_run import describe_trials, prepare, prepare_trials, show
from edgeawq.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])


def common_options(function: Function) -> Function:
    """What every study takes."""
    options = [
        click.option("--bits", type=int, default=3, show_default=True, help="Bits of a weight."),
        click.option("--group-size", type=int, default=64, show_default=True, help="Weights that share a scale."),
        click.option("--tokens", type=int, default=4096, show_default=True, help="Tokens to evaluate on."),
        click.option("--chunk", type=int, default=1024, show_default=True, help="Tokens that are read at a time."),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--threads", type=int, default=0, help="Threads; 0 takes every CPU."),
        click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with plots."),
        click.option("--json", "as_json", is_flag=True, help="Write the figures as JSON."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


text_option = click.option(
    "--text", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Text to evaluate on: its beginning."
)
calib_option = click.option(
    "--calib",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Calibration text; without it, what follows the evaluated part of --text.",
)
calib_tokens_option = click.option(
    "--calib-tokens", type=int, default=4096, show_default=True, help="Tokens of calibration text."
)


@click.group(name="study")
def command() -> None:
    """Repeat the AWQ paper's experiments on a model of your own.

    \b
    Example:
      edgeawq study salient embedded:smollm2-135m-instruct --text test.txt
      edgeawq study calib-shift ./model --domain prose=a.txt --domain code=b.txt
    """


@command.command(name="salient", short_help="Which input channels matter (table 1).")
@click.argument("model")
@text_option
@calib_option
@calib_tokens_option
@click.option("--percents", default="0.1,1,3", show_default=True, help="Percents of the input channels to keep.")
@common_options
def salient(model: str, text: Path, calib: Path | None, percents: str, **given: Any) -> None:
    """Keep some input channels in float16: chosen by activation, by weight norm, at random (the paper's table 1).

    \b
    Example:
      edgeawq study salient embedded:smollm2-135m-instruct --text test.txt --percents 1,3
    """
    from edgeawq.quantize.study import Column, Plot, Study
    from edgeawq.quantize.study_channels import check_shares, study_salient

    shares = [percent / 100 for percent in read_numbers(percents, "--percents")]
    check_shares(shares)
    with prepare(model, text, calib, given) as (bench, means, _, setting, on_step):
        rows = study_salient(bench, means, shares, given["seed"], on_step)
    study = Study(
        name="salient",
        title="Which input channels matter: some stay in float16, the rest is rounded to nearest",
        setting=setting,
        columns=(
            Column("criterion", "kept by"),
            Column("percent", "kept, %", ".3g"),
            Column("perplexity", "perplexity", ".3f"),
            Column("kl", "KL mean", ".4f"),
        ),
        rows=tuple(rows),
        plot=Plot("percent", "perplexity", "criterion"),
        baseline=float(str(rows[0]["perplexity"])),
    )
    show([study], given)


@command.command(name="scale", short_help="What multiplying channels before rounding does (table 2).")
@click.argument("model")
@text_option
@calib_option
@calib_tokens_option
@click.option("--factors", default="1,1.25,1.5,2,4", show_default=True, help="Factors s of the salient channels.")
@click.option("--percent", type=float, default=1.0, show_default=True, help="Percent of channels that are salient.")
@click.option(
    "--exponents", default="0,0.2,0.4,0.6,0.8,1", show_default=True, help="Exponents r of s = mean |x| to the power r."
)
@common_options
def scale(
    model: str, text: Path, calib: Path | None, factors: str, percent: float, exponents: str, **given: Any
) -> None:
    """Multiply channels before rounding and divide after: error against the factor (the paper's table 2).

    \b
    Example:
      edgeawq study scale embedded:smollm2-135m-instruct --text test.txt --factors 1,2,4 --exponents 0,0.5,1
    """
    from edgeawq.quantize.study import Column, Plot, Study
    from edgeawq.quantize.study_channels import check_shares, study_exponent, study_scale

    chosen, powers = read_numbers(factors, "--factors"), read_numbers(exponents, "--exponents")
    check_shares([percent / 100])
    if min(chosen) <= 0:
        raise UsageError(f"the factor {min(chosen):g} makes no sense", remedy="give factors above 0, such as 1,1.5,2")
    with prepare(model, text, calib, given) as (bench, means, chunks, setting, on_step):
        by_factor = study_scale(bench, means, chunks, chosen, percent / 100, on_step)
        by_power = study_exponent(bench, means, chunks, powers, on_step)
        baseline = bench.score(lambda layer, module, weight: weight).perplexity
    measured = (
        Column("error_percent", "error, %", ".3f"),
        Column("perplexity", "perplexity", ".3f"),
        Column("kl", "KL mean", ".4f"),
    )
    studies = [
        Study(
            name="scale",
            title=f"The {percent:g} % of input channels with the largest activations, multiplied by s before rounding",
            setting=setting,
            columns=(
                Column("factor", "s", "g"),
                Column("changed_percent", "Δ' ≠ Δ, %", ".1f"),
                Column("step_ratio", "Δ'/Δ", ".3f"),
                Column("salient_error", "Δ'/Δ/s", ".3f"),
                *measured,
            ),
            rows=tuple(by_factor),
            plot=Plot("factor", "perplexity", "series"),
            baseline=baseline,
        ),
        Study(
            name="exponent",
            title="Every input channel multiplied by its mean |x| to the power r before rounding",
            setting=setting,
            columns=(Column("factor", "r", "g"), *measured),
            rows=tuple(by_power),
            plot=Plot("factor", "perplexity", "series"),
            baseline=baseline,
        ),
    ]
    show(studies, given)


@command.command(name="calib-size", short_help="How much calibration text is needed (figure 8).")
@click.argument("model")
@text_option
@calib_option
@click.option("--sizes", default="512,2048,8192", show_default=True, help="Numbers of calibration tokens.")
@click.option("--methods", default="awq,gptq", show_default=True, help="Methods of edgeawq quantize.")
@click.option("--seeds", type=int, default=1, show_default=True, help="Draws of the calibration text for each size.")
@common_options
def calib_size(model: str, text: Path, calib: Path | None, sizes: str, methods: str, seeds: int, **given: Any) -> None:
    """Perplexity against the amount of calibration text (the paper's figure 8, left).

    \b
    Example:
      edgeawq study calib-size embedded:smollm2-135m-instruct --text test.txt --sizes 1024,4096 --methods awq
    """
    from dataclasses import replace

    from edgeawq.quantize.study import Column, Plot, Study
    from edgeawq.quantize.study_calibration import study_size

    counts = [int(size) for size in read_numbers(sizes, "--sizes")]
    if not 1 <= seeds <= 100:
        raise UsageError(f"{seeds} seeds are not between 1 and 100")
    names = read_methods(methods)
    with prepare_trials(model, {"text": text}, given) as (trials, domains, on_step):
        domain = replace(domains[0], calibration=calib) if calib is not None else domains[0]
        baseline = trials.measure_float(domain)
        rows = study_size(trials, domain, names, counts, seeds, on_step)
    study = Study(
        name="calib-size",
        title="Perplexity against the amount of calibration text",
        setting=describe_trials(given, domain.chunks.numel()) + f"; float {baseline:.3f}",
        columns=(
            Column("method", "method"),
            Column("tokens", "tokens", ",d"),
            Column("perplexity", "perplexity", ".3f"),
            *((Column("spread", "spread", ".3f"),) if seeds > 1 else ()),
        ),
        rows=tuple(rows),
        plot=Plot("tokens", "perplexity", "method", is_x_log=True),
        baseline=baseline,
    )
    show([study], given)


@command.command(name="calib-shift", short_help="What calibration text of another kind costs (figure 8).")
@click.argument("model")
@click.option(
    "--domain",
    "domains",
    multiple=True,
    required=True,
    metavar="NAME=FILE",
    help="A kind of text; evaluated on its beginning, calibrated on the rest. Give two or more.",
)
@click.option("--methods", default="awq,gptq", show_default=True, help="Methods of edgeawq quantize.")
@calib_tokens_option
@common_options
def calib_shift(model: str, domains: tuple[str, ...], methods: str, **given: Any) -> None:
    """Calibrate on one kind of text, evaluate on another (the paper's figure 8, right).

    \b
    Example:
      edgeawq study calib-shift ./model --domain prose=book.txt --domain code=src.txt
    """
    from edgeawq.quantize.study import Column, Plot, Study
    from edgeawq.quantize.study_calibration import study_shift

    files = read_domains(domains)
    names = read_methods(methods)
    with prepare_trials(model, files, given) as (trials, found, on_step):
        rows = study_shift(trials, found, names, on_step)
    for row in rows:
        row["pair"] = f"{row['calibrated']} → {row['evaluated']}"
    study = Study(
        name="calib-shift",
        title="Perplexity where calibration and use are of different kinds",
        setting=describe_trials(given, found[0].chunks.numel()),
        columns=(
            Column("method", "method"),
            Column("pair", "calibrated → evaluated"),
            Column("perplexity", "perplexity", ".3f"),
            Column("float", "float", ".3f"),
            Column("penalty", "penalty", "+.3f"),
        ),
        rows=tuple(rows),
        plot=Plot("pair", "perplexity", "method"),
    )
    show([study], given)


def read_numbers(text: str, option: str) -> list[float]:
    """Numbers separated by commas; raises UsageError for anything else."""
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise UsageError(f"{option} is {text!r}, not numbers separated by commas", remedy=f"write {option} 1,2,3")
    return numbers


def read_methods(text: str) -> list[str]:
    """Methods of the quantizer; raises UsageError for one that it does not have."""
    from edgeawq.quantize.settings import QuantizeSettings

    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError("--methods is empty", remedy="write --methods awq")
    for name in names:
        QuantizeSettings(method=name)  # refuses a name that is not known
    return names


def read_domains(given: tuple[str, ...]) -> dict[str, Path]:
    """NAME=FILE as a dictionary; raises UsageError unless there are two with different names."""
    found: dict[str, Path] = {}
    for entry in given:
        name, sign, file = entry.partition("=")
        if not sign or not name or not file:
            raise UsageError(f"--domain is {entry!r}, not NAME=FILE", remedy="write --domain prose=book.txt")
        found[name] = Path(file)
    if len(found) < 2 or len(found) < len(given):
        raise UsageError("at least two domains with different names are needed", remedy="give --domain NAME=FILE twice")
    return found
