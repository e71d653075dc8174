"""Perplexity of every method of the quantizer, and what each ingredient of AWQ gains.

    python -m benchmarks.quantizer_methods --text valid.txt --calib calib.txt --calib-tokens 8192 --bits 4 3
    python -m benchmarks.quantizer_methods --text valid.txt --calib a.txt b.txt c.txt --methods awq awq+gptq
    python -m benchmarks.quantizer_methods --text valid.txt --calib calib.txt --ablation

Each row is one run of `quantize_model`, evaluated on the first 12 × 1024 tokens of the text. Several --calib
files are several draws: mean and spread are shown. A killed run goes on where it was when --folder is given.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from edgeawq.checkpoints.open_model import open_model
from edgeawq.quantize import block, scale_search
from edgeawq.quantize.clip_search import CLIP_PLAN, NO_CLIP, search_clip
from edgeawq.quantize.parallel import start_workers
from edgeawq.quantize.perplexity import measure_perplexity, read_evaluation_tokens, stream_model
from edgeawq.quantize.pipeline import quantize_model
from edgeawq.quantize.scale_search import IDENTITY, ScaleChoice
from edgeawq.quantize.settings import QuantizeSettings

METHODS = ("rtn", "gptq", "awq", "awq+gptq", "awq+round")


@contextmanager
def leave_out_identity() -> Iterator[None]:
    """Unscaled weights are no candidate, except where the others lead there."""
    rank = scale_search.rank

    def rank_others(candidates: Any, *rest: Any) -> Any:
        return rank([candidate for candidate in candidates if candidate != IDENTITY], *rest)

    with mock.patch.object(scale_search, "rank", rank_others):
        yield


@contextmanager
def leave_out_pair(name: str) -> Iterator[None]:
    """The layers of a pair are not scaled."""
    choose = block.choose_scales

    def choose_others(pair: Any, weights: Any, *rest: Any) -> ScaleChoice:
        if pair.name != name:
            return choose(pair, weights, *rest)
        return ScaleChoice(IDENTITY, torch.ones(weights[f"{pair.linears[0]}.weight"].shape[1]))

    with mock.patch.object(block, "choose_scales", choose_others):
        yield


# What is left out → how; each changes one thing of the complete method.
ABLATIONS: dict[str, Callable[[], Any]] = {
    "identity as a candidate": leave_out_identity,
    "plain candidates (x̄ alone)": lambda: mock.patch.object(scale_search, "PLAIN", ()),
    "duo candidates (x̄ and w̄)": lambda: mock.patch.object(scale_search, "DUO", ()),
    "refinement of the scale search": lambda: mock.patch.object(scale_search, "REFINEMENT_STEPS", ()),
    "clip in the scale search": lambda: mock.patch.object(scale_search, "CLIP_RATIOS", scale_search.NO_CLIP),
    "v → o under GQA": lambda: leave_out_pair("o"),
    "up → down": lambda: leave_out_pair("down"),
    "clip search": lambda: mock.patch.object(block, "search_clip", functools.partial(search_clip, plan=NO_CLIP)),
    "clip: both ends apart, other groups in view": lambda: mock.patch.object(
        block, "search_clip", functools.partial(search_clip, plan=CLIP_PLAN[:1])
    ),
}


def measure(
    arguments: argparse.Namespace, settings: QuantizeSettings, calibration: Path, folder: Path
) -> tuple[float, float]:
    """(perplexity, seconds to quantize) of one run; what is there already is not made again."""
    figures = folder.with_name(f"{folder.name}.figures.json")
    if not figures.exists():
        started = time.monotonic()
        quantize_model(
            open_model(arguments.model),
            folder,
            settings,
            calibration=None if settings.method == "rtn" else calibration,
            n_threads=arguments.threads,
            overwrite=True,
        )
        seconds = time.monotonic() - started
        figures.write_text(json.dumps([evaluate(arguments, str(folder)), seconds]))
    perplexity, seconds = json.loads(figures.read_text())
    return float(perplexity), float(seconds)


def evaluate(arguments: argparse.Namespace, model: str) -> float:
    """Perplexity of a checkpoint on the first tokens of the text."""
    checkpoint = open_model(model)
    chunks = read_evaluation_tokens(arguments.text, checkpoint, arguments.eval_tokens)
    with start_workers(arguments.threads) as workers, torch.no_grad():
        return measure_perplexity(stream_model(checkpoint), chunks, workers).perplexity


def show(label: str, figures: list[tuple[float, float]]) -> None:
    """One row of a Markdown table."""
    values = [perplexity for perplexity, _ in figures]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    times = " ".join(f"{seconds:.0f}" for _, seconds in figures)
    print(f"| {label} | {statistics.mean(values):.3f}{spread} | {times} |", flush=True)


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """All rows."""
    print("| run | perplexity | seconds to quantize |\n|---|---:|---:|", flush=True)
    for bits in arguments.bits:
        base = QuantizeSettings(
            bits=bits,
            group_size=arguments.group_size,
            head_bits=16,
            calibration_tokens=arguments.calib_tokens,
            rounding_steps=arguments.rounding_steps,
        )
        if arguments.ablation:
            place = folder / f"w{bits}"
            show(f"w{bits} awq, complete", [measure(arguments, base, arguments.calib[0], place / "complete")])
            for number, (name, change) in enumerate(ABLATIONS.items()):
                with change():
                    figures = measure(arguments, base, arguments.calib[0], place / f"without-{number}")
                show(f"w{bits} without: {name}", [figures])
            for head_bits in (8, 4):
                settings = replace(base, head_bits=head_bits)
                figures = measure(arguments, settings, arguments.calib[0], place / f"head-{head_bits}")
                show(f"w{bits} with a head of {head_bits} bits", [figures])
            continue
        for method in arguments.methods:
            settings = replace(base, method=method)
            draws = arguments.calib[:1] if method == "rtn" else arguments.calib
            figures_of_draws = [
                measure(arguments, settings, calibration, folder / f"w{bits}-{method}-{number}")
                for number, calibration in enumerate(draws)
            ]
            show(f"w{bits}g{arguments.group_size} {method}", figures_of_draws)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calib", type=Path, nargs="+", required=True)
    parser.add_argument("--calib-tokens", type=int, default=8192)
    parser.add_argument("--eval-tokens", type=int, default=12288)
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--threads", type=int, default=0, help="0: all CPUs")
    parser.add_argument("--rounding-steps", type=int, default=100)
    parser.add_argument("--ablation", action="store_true", help="AWQ with one ingredient less in every row")
    parser.add_argument("--folder", type=Path, help="keep the checkpoints here, and use those that are there")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        run(arguments, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(arguments, Path(folder))


if __name__ == "__main__":
    main()
