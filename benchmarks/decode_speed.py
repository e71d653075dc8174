"""Decode and prefill speed side by side with Hugging Face transformers (and llama.cpp where it is installed), and the
time a cold process takes to its first token.

    python -m benchmarks.decode_speed [--bundle DIR] [--threads 2] [--repetitions 7]

Engines take turns within every repetition, so that a busy machine slows all of them; medians, ranges and ratios of
medians are printed. Every engine runs the same tokens of the embedded model, greedily.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MODEL = "embedded:smollm2-135m-instruct"
TEXT = (
    "The lighthouse keeper climbed the stairs every evening before sunset, counted the ships on the horizon, and wrote "
    "their names into a book that nobody else had ever read. "
)


@dataclass
class Engine:
    """prefill(token ids) forgets everything and reads a prompt; decode(n) then generates n tokens greedily."""

    name: str
    prefill: Callable[[list[int]], None]
    decode: Callable[[int], None]


@dataclass(frozen=True)
class Result:
    engine: str
    measure: str
    median: float
    low: float
    high: float


def open_edgeawq(bundle: Path, threads: int, activations: str) -> Engine:
    from edgeawq.runtime.decoder import Decoder

    decoder = Decoder.open(bundle, n_threads=threads, activations=activations)  # type: ignore[arg-type]
    last: list[Any] = []

    def prefill(tokens: list[int]) -> None:
        decoder.rewind(0)
        last[:] = [decoder.forward(tokens)]

    def decode(count: int) -> None:
        for _ in range(count):
            last[0] = decoder.forward([int(last[0].argmax())])

    name = "edgeawq" if activations == "int8" else "edgeawq, float activations"
    return Engine(name, prefill, decode)


def open_transformers(threads: int, dtype: str) -> Engine:
    import torch
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    from edgeawq.checkpoints.hf_config import describe_hf_config
    from edgeawq.checkpoints.open_model import open_model

    torch.set_num_threads(threads)
    checkpoint = open_model(MODEL)
    config = LlamaConfig(**describe_hf_config(checkpoint.config, {}))
    model = LlamaForCausalLM(config)
    state = {name: torch.from_numpy(checkpoint.tensor(name)) for name in checkpoint.tensor_names()}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    model = model.to(getattr(torch, dtype)).eval()
    held: dict[str, Any] = {}

    @torch.inference_mode()
    def run(tokens: list[int]) -> None:
        out = model(torch.tensor([tokens]), past_key_values=held["cache"], use_cache=True, logits_to_keep=1)
        held["next"] = int(out.logits[0, -1].argmax())

    def prefill(tokens: list[int]) -> None:
        held["cache"] = DynamicCache(config=config)
        run(tokens)

    def decode(count: int) -> None:
        for _ in range(count):
            run([held["next"]])

    return Engine(f"transformers {dtype}", prefill, decode)


def open_llama_cpp(threads: int) -> Engine:
    from llama_cpp import Llama

    from edgeawq.checkpoints.embedded_model import find_embedded_file

    model = Llama(
        str(find_embedded_file()),
        n_ctx=2048,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
        logits_all=False,
    )
    held: dict[str, int] = {}

    def prefill(tokens: list[int]) -> None:
        model.reset()
        model.eval(tokens)

    def decode(count: int) -> None:
        for _ in range(count):
            held["next"] = model.sample(temp=0.0)
            model.eval([held["next"]])

    return Engine("llama.cpp Q4_1", prefill, decode)


def measure_engines(engines: list[Engine], tokens: list[int], n_decode: int, repetitions: int) -> list[Result]:
    figures: dict[tuple[str, str], list[float]] = {}
    for repetition in range(repetitions + 1):
        for engine in engines:
            start = time.perf_counter()
            engine.prefill(tokens)
            middle = time.perf_counter()
            engine.decode(n_decode)
            end = time.perf_counter()
            if repetition:  # the first is a warm-up
                figures.setdefault((engine.name, "prefill_tokens_per_s"), []).append(len(tokens) / (middle - start))
                figures.setdefault((engine.name, "decode_tokens_per_s"), []).append(n_decode / (end - middle))
    return [summarize(name, measure, values) for (name, measure), values in figures.items()]


def measure_cold_start(bundle: Path, repetitions: int, threads: int) -> Result:
    command = [sys.executable, "-m", "edgeawq", "run", str(bundle), "--prompt", "Hello", "--max-tokens", "1"]
    seconds = []
    for repetition in range(repetitions + 1):
        start = time.perf_counter()
        subprocess.run([*command, "--threads", str(threads)], check=True, capture_output=True)
        if repetition:
            seconds.append(time.perf_counter() - start)
    return summarize("edgeawq", "cold process to first token and exit, s", seconds)


def summarize(engine: str, measure: str, values: list[float]) -> Result:
    return Result(engine, measure, statistics.median(values), min(values), max(values))


def make_bundle(folder: Path) -> Path:
    """Quantize (RTN: speed does not depend on the method) and pack the embedded model for this machine."""
    checkpoint, bundle = folder / "checkpoint", folder / "host.edgeawq"
    edgeawq = [sys.executable, "-m", "edgeawq"]
    subprocess.run([*edgeawq, "quantize", MODEL, "-o", str(checkpoint), "--method", "rtn"], check=True)
    subprocess.run([*edgeawq, "pack", str(checkpoint), "--device", "host", "-o", str(bundle)], check=True)
    return bundle


def print_results(results: list[Result], threads: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{threads} thread{'s' if threads > 1 else ''}, {os.cpu_count()} CPUs")
    for column in ("measure", "engine", "median", "range", "edgeawq / this"):
        table.add_column(column, justify="left" if column in ("measure", "engine") else "right")
    for measure in dict.fromkeys(result.measure for result in results):
        rows = [result for result in results if result.measure == measure]
        for row in sorted(rows, key=lambda result: -result.median):
            ratio = f"{rows[0].median / row.median:.2f}" if len(rows) > 1 else ""
            table.add_row(measure, row.engine, f"{row.median:.3g}", f"{row.low:.3g} … {row.high:.3g}", ratio)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bundle", type=Path, help="a bundle of the embedded model for this machine (default: make one)"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--decode-tokens", type=int, default=48)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = arguments.bundle or make_bundle(Path(scratch))
        from edgeawq.runtime.bundle_text import open_bundle_text

        tokens = list(open_bundle_text(bundle).tokenizer.encode(TEXT * 40))[: arguments.prompt_tokens]
        cold = measure_cold_start(bundle, arguments.repetitions, arguments.threads)
        engines = [
            open_edgeawq(bundle, arguments.threads, "int8"),
            open_transformers(arguments.threads, "float32"),
            open_transformers(arguments.threads, "bfloat16"),
        ]
        try:
            engines.append(open_llama_cpp(arguments.threads))
        except ModuleNotFoundError:
            print("llama.cpp is not installed (pip install llama-cpp-python): left out", file=sys.stderr)
        results = [*measure_engines(engines, tokens, arguments.decode_tokens, arguments.repetitions), cold]
    if arguments.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
    else:
        print_results(results, arguments.threads)


if __name__ == "__main__":
    main()
