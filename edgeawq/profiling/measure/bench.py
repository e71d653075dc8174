"""Prefill and decode at several sizes and numbers of threads, in the manner of llama-bench.

ppN: a prompt of N tokens read into an empty context. tgN: N tokens, one by one, from an empty context, without
sampling. A repetition is the whole of it; one before them warms up.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from edgeawq.errors import UsageError
from edgeawq.profiling.json_values import Range
from edgeawq.profiling.measure.generation import plain_tokens
from edgeawq.profiling.measure.statistics import summarize
from edgeawq.profiling.schema import Measurement
from edgeawq.runtime.decoder import Activations, Decoder
from packager.manifest_reader import read_manifest

MAX_REPETITIONS = 1000


@dataclass(frozen=True)
class BenchOptions:
    """What to run. threads: 0 for one on each CPU."""

    prompts: tuple[int, ...] = (512,)
    generations: tuple[int, ...] = (128,)
    threads: tuple[int, ...] = (0,)
    repetitions: int = 5
    activations: Activations = "int8"
    kv_bits: int = 0


@dataclass(frozen=True)
class BenchRow:
    """One test's result. mean and deviation (of the sample) are what llama-bench prints."""

    model: str
    weights_bytes: int
    bits: Annotated[int, Range(1, 64)]  # of the body's weights
    isa: str
    activations: Literal["int8", "float"]
    kv_bits: Annotated[int, Range(1, 64)]
    threads: Annotated[int, Range(1, 4096)]
    test: str  # "pp512", "tg128"
    tokens_per_second: Measurement
    mean_tokens_per_second: float
    deviation_tokens_per_second: float


def list_tests(options: BenchOptions) -> list[tuple[str, int]]:
    """("pp", 512), ("tg", 128), …: prompts first."""
    tests = [("pp", count) for count in options.prompts] + [("tg", count) for count in options.generations]
    if not tests:
        raise UsageError("there is nothing to run", remedy="give a prompt length (-p) or a number of tokens (-n)")
    return tests


def run_bench(
    bundle: Path,
    options: BenchOptions,
    *,
    on_progress: Callable[[str, float], None] = lambda stage, share: None,
    now: Callable[[], float] = time.perf_counter,
) -> Iterator[BenchRow]:
    """A row for each number of threads and test, as soon as it is there; on_progress gets a name and a share.

    Raises UsageError where a test does not fit into the model's context.
    """
    tests = list_tests(options)
    longest = max(count for _, count in tests)
    limit = read_manifest(bundle).model.max_position_embeddings
    if min(count for _, count in tests) < 1 or longest > limit:
        raise UsageError(
            f"a test of {longest} tokens does not fit the model's context of {limit}", remedy="give 1 or more, and less"
        )
    total = len(options.threads) * len(tests)
    done = 0
    for n_threads in options.threads:
        with Decoder.open(
            bundle,
            n_threads=n_threads,
            context_length=longest,
            activations=options.activations,
            kv_bits=options.kv_bits,
        ) as decoder:
            for kind, count in tests:
                on_progress(f"{kind}{count}, {decoder.n_threads} threads", done / total)
                yield _run_test(decoder, kind, count, options.repetitions, now)
                done += 1
    on_progress("done", 1.0)


def _run_test(decoder: Decoder, kind: str, count: int, repetitions: int, now: Callable[[], float]) -> BenchRow:
    tokens = plain_tokens(decoder.config.vocab_size, count)
    run = _read if kind == "pp" else _write
    run(decoder, tokens)
    rates = []
    for _ in range(repetitions):
        start = now()
        run(decoder, tokens)
        rates.append(count / (now() - start))
    manifest = decoder.bundle.manifest
    weights, body = manifest.file("weights"), manifest.tensor("layers.0.qkv")
    assert weights is not None and body is not None
    return BenchRow(
        model=manifest.model.name,
        weights_bytes=weights.size,
        bits=body.bits,
        isa=decoder.isa,
        activations=decoder.activations,
        kv_bits=decoder.kv_bits,
        threads=decoder.n_threads,
        test=f"{kind}{count}",
        tokens_per_second=summarize(rates),
        mean_tokens_per_second=statistics.fmean(rates),
        deviation_tokens_per_second=statistics.stdev(rates) if len(rates) > 1 else 0.0,
    )


def _read(decoder: Decoder, tokens: Sequence[int]) -> None:
    decoder.rewind(0)
    decoder.forward(tokens)


def _write(decoder: Decoder, tokens: Sequence[int]) -> None:
    decoder.rewind(0)
    for token in tokens:
        decoder.forward([token])
