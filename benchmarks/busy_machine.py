"""Decode speed while another program uses one core, side by side with llama.cpp.

    python -m benchmarks.busy_machine --llama-bench PATH [--shape smollm2-135m] [--repetitions 4]

Every repetition runs each engine with one and with two threads, on the quiet machine and beside a process that only
counts. Medians and ranges are printed, and what is left of the engine's own quiet speed with one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peer_speed import DECODE_TOKENS, run_llama, run_ours, summarize
from benchmarks.shapes import SHAPES, write_bundle, write_gguf
from edgeawq.errors import EdgeawqError


@contextlib.contextmanager
def one_core_used() -> Iterator[None]:
    """A process that never waits."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--shape", default="smollm2-135m", choices=list(SHAPES))
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "edgeawq" / "benchmarks")
    arguments = parser.parse_args()
    shape, count = SHAPES[arguments.shape], DECODE_TOKENS[arguments.shape]
    arguments.cache.mkdir(parents=True, exist_ok=True)
    bundle, model = arguments.cache / f"{shape.name}.edgeawq", arguments.cache / f"{shape.name}.gguf"
    try:
        write_bundle(shape, bundle)
    except EdgeawqError as error:
        sys.exit(str(error))
    write_gguf(shape, model)
    rates: dict[tuple[str, int, str], list[float]] = {}

    def measure(machine: str) -> None:
        for threads in (1, 2):
            ours = run_ours(bundle, threads, 0, count)["decode"]
            theirs = run_llama(arguments.llama_bench, model, threads, 0, count)["decode"]
            rates.setdefault(("edgeawq", threads, machine), []).append(ours)
            rates.setdefault(("llama.cpp Q4_0", threads, machine), []).append(theirs)

    for _ in range(arguments.repetitions):
        measure("quiet")
        with one_core_used():
            measure("one core used")
    sys.stdout.write(f"{shape.name}, {os.cpu_count()} cores, decode, tokens/s\n")
    sys.stdout.write("| engine | threads | machine | median (range) | of its quiet speed with 1 thread |\n")
    sys.stdout.write("|---|---:|---|---:|---:|\n")
    for (engine, threads, machine), values in sorted(rates.items()):
        alone = statistics.median(rates[engine, 1, "quiet"])
        share = statistics.median(values) / alone
        sys.stdout.write(f"| {engine} | {threads} | {machine} | {summarize(values)} | {share:.2f} |\n")


if __name__ == "__main__":
    main()
