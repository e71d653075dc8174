"""Options that every command with a model takes, and what they mean."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeawq.errors import UsageError

if TYPE_CHECKING:
    from edgeawq.runtime.engine import Engine
    from edgeawq.runtime.sampler import SamplerSettings

Function = TypeVar("Function", bound=Callable[..., Any])

SAMPLING_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
ENGINE_NAMES = ("threads", "context_length", "activations")

_SAMPLING_OPTIONS = (
    click.option("--temperature", type=float, help="Randomness; 0 always takes the likeliest token."),
    click.option("--top-k", type=int, help="Choose among the K likeliest tokens only; 0 is off."),
    click.option(
        "--top-p", type=float, help="Choose among the likeliest tokens that reach this probability; 1 is off."
    ),
    click.option(
        "--min-p", type=float, help="Leave out tokens below this share of the best one's probability; 0 is off."
    ),
    click.option("--repetition-penalty", type=float, help="Above 1 makes repeated tokens less likely."),
    click.option("--seed", type=int, help="The same seed gives the same answer."),
)
_ENGINE_OPTIONS = (
    click.option("--threads", type=int, help="Number of threads; by default one for each CPU."),
    click.option("--context-length", type=int, help="Tokens of context to make room for."),
    click.option(
        "--activations",
        type=click.Choice(["int8", "float"]),
        help="int8 is fast (default); float is exact, to compare with.",
    ),
)


def sampling_options(function: Function) -> Function:
    """Add --temperature, --top-k, --top-p, --min-p, --repetition-penalty and --seed."""
    for option in reversed(_SAMPLING_OPTIONS):
        function = option(function)
    return function


def engine_options(function: Function) -> Function:
    """Add --threads, --context-length and --activations."""
    for option in reversed(_ENGINE_OPTIONS):
        function = option(function)
    return function


def open_model_engine(bundle: Path, options: Mapping[str, Any]) -> Engine:
    """Open the bundle with the values of `engine_options`."""
    from edgeawq.runtime.engine import open_engine

    return open_engine(
        bundle,
        n_threads=options["threads"] or 0,
        context_length=options["context_length"],
        activations=options["activations"] or "int8",
    )


def choose_sampling(defaults: SamplerSettings, options: Mapping[str, Any]) -> SamplerSettings:
    """The bundle's defaults, with what was given on the command line instead."""
    from dataclasses import replace

    return replace(defaults, **{name: options[name] for name in SAMPLING_NAMES if options[name] is not None})


def check_bundle_folder(path: Path) -> Path:
    """The path itself if a bundle lies there; UsageError otherwise."""
    if not path.is_dir():
        raise UsageError(
            f"there is no bundle {path}", remedy="give a folder that `edgeawq pack` has written, NAME.edgeawq"
        )
    return path


def prepare_output() -> None:
    """Let standard output replace what its encoding lacks: an answer may hold any character."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
