"""Decode and prefill speed side by side with llama.cpp's own benchmark program, on several shapes and thread counts.

    python -m benchmarks.peer_speed --llama-bench PATH [--shapes smollm2-135m,…] [--threads 1,2] [--repetitions 5]

The programs take turns within every repetition, so that a busy machine slows all of them; the memory's read bandwidth
is measured in every repetition too (read_bandwidth.c). Medians, ranges and ratios of medians are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.shapes import SHAPES, write_bundle, write_gguf

HERE = Path(__file__).parent
PROMPT_TOKENS = 512
DECODE_TOKENS = {"smollm2-135m": 128, "tinyllama-1.1b": 32, "llama2-7b": 8}

OURS = """
import json, sys, time
import numpy as np
from edgeawq.runtime.decoder import Decoder
folder, threads, prompt, count = sys.argv[1], *map(int, sys.argv[2:5])
rng = np.random.default_rng(0)
with Decoder.open(folder, n_threads=threads, context_length=prompt + count + 8, give_way=True) as decoder:
    vocab = decoder.config.vocab_size
    decoder.forward(rng.integers(0, vocab, 8).tolist())
    rate = {}
    if prompt:
        decoder.rewind(0)
        tokens = rng.integers(0, vocab, prompt).tolist()
        start = time.perf_counter()
        decoder.forward(tokens)
        rate["prefill"] = prompt / (time.perf_counter() - start)
    decoder.rewind(0)
    decoder.forward([1])
    start = time.perf_counter()
    for _ in range(count):
        decoder.forward([int(rng.integers(vocab))])
    rate["decode"] = count / (time.perf_counter() - start)
    # an embedding that is not the head too is read one row at a time
    read = [t for t in decoder.bundle.manifest.tensors if t.name != "embed" or decoder.config.tie_word_embeddings]
    rate["bytes_per_token"] = sum(tensor.nbytes for tensor in read)
print(json.dumps(rate))
"""


def run_ours(bundle: Path, threads: int, prompt: int, count: int) -> dict[str, float]:
    command = [sys.executable, "-c", OURS, str(bundle), str(threads), str(prompt), str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_llama(program: str, model: Path, threads: int, prompt: int, count: int) -> dict[str, float]:
    """One repetition of llama-bench: its own warm-up, then prompt processing and generation."""
    command = [program, "-m", str(model), "-t", str(threads), "-p", str(prompt), "-n", str(count), "-r", "1"]
    done = subprocess.run([*command, "-o", "json"], check=True, capture_output=True, text=True)
    found = {}
    for entry in json.loads(done.stdout):
        found["prefill" if entry["n_prompt"] else "decode"] = float(entry["avg_ts"])
    return found


def run_read(program: Path, threads: int) -> tuple[float, float]:
    """(median, best) bytes/s of a plain read of memory."""
    done = subprocess.run([str(program), str(threads), "512", "1.5"], check=True, capture_output=True, text=True)
    median, best = map(float, done.stdout.split())
    return median, best


def write_k_quant(llama_bench: str, source: Path, path: Path) -> None:
    """Q4_K_M of the weights in a Q4_0 file, by the llama-quantize beside llama-bench; an existing one stays."""
    if path.exists():
        return
    program = Path(llama_bench).with_name("llama-quantize")
    temporary = path.with_suffix(".part")
    command = [str(program), "--allow-requantize", str(source), str(temporary), "Q4_K_M"]
    subprocess.run(command, check=True, capture_output=True)
    temporary.rename(path)


def summarize(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return f"{statistics.median(ordered):.4g} ({ordered[0]:.4g}–{ordered[-1]:.4g})"


Figures = dict[tuple[str, str], list[float]]  # (what was run, what was measured) → one value a repetition


def measure(
    arguments: argparse.Namespace,
    shape: str,
    threads: int,
    reader: Path,
    bundles: dict[str, Path],
    ggufs: dict[str, Path],
) -> Figures:
    """Let everything take turns."""
    figures: Figures = {}
    count = DECODE_TOKENS[shape]
    for _ in range(arguments.repetitions):
        for name, value in zip(("read", "best read"), run_read(reader, threads), strict=True):
            figures.setdefault(("memory", name), []).append(value)
        for label, bundle in bundles.items():
            for name, value in run_ours(bundle, threads, arguments.prompt, count).items():
                figures.setdefault((label, name), []).append(value)
        for label, model in ggufs.items():
            for name, value in run_llama(arguments.llama_bench, model, threads, arguments.prompt, count).items():
                figures.setdefault((label, name), []).append(value)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=PROMPT_TOKENS)
    parser.add_argument("--models", type=Path, default=Path.home() / ".cache" / "edgeawq" / "benchmarks")
    parser.add_argument(
        "--gguf", action="append", default=[], metavar="SHAPE=FILE", help="Another GGUF file to run too."
    )
    parser.add_argument("--bundle", action="append", default=[], metavar="SHAPE=DIR", help="Another bundle to run too.")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.models.mkdir(parents=True, exist_ok=True)
    reader = arguments.models / "read_bandwidth"
    subprocess.run(["cc", "-O3", "-mavx2", "-pthread", str(HERE / "read_bandwidth.c"), "-o", str(reader)], check=True)
    results = []
    for name in arguments.shapes.split(","):
        shape = SHAPES[name]
        bundles = {f"edgeawq {name}": arguments.models / f"{name}.edgeawq"}
        write_bundle(shape, bundles[f"edgeawq {name}"])
        ggufs = {f"llama.cpp {name} Q4_0": arguments.models / f"{name}.gguf"}
        write_gguf(shape, ggufs[f"llama.cpp {name} Q4_0"])
        k_quant = arguments.models / f"{name}.q4_k_m.gguf"
        write_k_quant(arguments.llama_bench, ggufs[f"llama.cpp {name} Q4_0"], k_quant)
        ggufs[f"llama.cpp {name} Q4_K_M"] = k_quant
        for extra, found, kind in ((arguments.gguf, ggufs, "llama.cpp"), (arguments.bundle, bundles, "edgeawq")):
            for entry in extra:
                which, _, path = entry.partition("=")
                if which == name:
                    found[f"{kind} {Path(path).name}"] = Path(path)
        for threads in map(int, arguments.threads.split(",")):
            figures = measure(arguments, name, threads, reader, bundles, ggufs)
            named = {" / ".join(key): values for key, values in figures.items()}
            results.append({"shape": name, "threads": threads, "figures": named})
            report(name, threads, figures)
    if arguments.json:
        arguments.json.write_text(json.dumps({"cpu": os.uname().machine, "results": results}, indent=1))


def report(shape: str, threads: int, figures: Figures) -> None:
    read = statistics.median(figures["memory", "read"])
    best = statistics.median(figures["memory", "best read"])
    print(f"\n{shape}, {threads} thread(s); memory read {read / 1e9:.2f} GB/s, best pass {best / 1e9:.2f} GB/s")
    base: dict[str, float] = {}
    for (label, measure), values in figures.items():
        if measure not in ("prefill", "decode"):
            continue
        middle = statistics.median(values)
        base.setdefault(measure, middle)
        line = f"  {label:34} {measure:8} {summarize(values):28} tokens/s"
        if label.startswith("edgeawq") and measure == "decode":
            weights = figures[label, "bytes_per_token"][0]
            line += f"  {weights * middle / 1e9:.2f} GB/s, {100 * weights * middle / read:.0f} % of the read bandwidth"
        else:
            line += f"  edgeawq is {base[measure] / middle:.2f} ×"
        print(line, flush=True)


if __name__ == "__main__":
    main()
