"""The number of threads that decodes fastest: measured once for a CPU and a bundle, and remembered."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgeawq.errors import EdgeawqError, UsageError
from edgeawq.runtime.cache_folder import find_cache_folder
from edgeawq.runtime.decoder import MAX_THREADS, Activations, Decoder
from edgeawq.runtime.engine import hash_bundle
from edgeawq.runtime.native import NativeKernel
from edgeawq.runtime.placement import choose_cpus
from edgeawq.runtime.whole_file import write_whole

FORMAT_VERSION = 1
FILE_NAME = "threads.json"
MAX_BYTES = 1 << 20
MAX_ENTRIES = 256
BUDGET_S = 1.6  # for all measurements together
CONTEXT_LENGTH = 128  # the measurement runs in the middle of it
# More threads win by more than this or not at all: they cost other programs their CPU.
CLEAR_GAIN = 1.03
MAX_CANDIDATES = 8


@dataclass(frozen=True)
class ThreadChoice:
    """The outcome of a measurement."""

    n_threads: int
    decode_tokens_per_s: Mapping[int, float]  # by number of threads


def measure_threads(
    bundle: Path,
    *,
    activations: Activations = "int8",
    kernel: NativeKernel | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> ThreadChoice:
    """Decode a few tokens with 1 … all CPUs and take the fastest number of threads; about BUDGET_S seconds.

    A model too slow for that is measured with the largest numbers only. The affinity is as before afterwards.
    """

    def open_decoder(n_threads: int) -> Decoder:
        return Decoder.open(
            bundle, n_threads=n_threads, context_length=CONTEXT_LENGTH, activations=activations, kernel=kernel
        )

    cpus = frozenset(os.sched_getaffinity(0))
    candidates = list_candidates(min(len(cpus), MAX_THREADS))
    speeds: dict[int, float] = {}
    start = now()
    try:
        for index, n_threads in enumerate(candidates):
            # set before the threads start, which inherit it
            os.sched_setaffinity(0, choose_cpus(n_threads, cpus))
            share_s = max(0.0, BUDGET_S - (now() - start)) / (len(candidates) - index)
            speeds[n_threads] = _measure_speed(open_decoder, n_threads, share_s, now)
            if now() - start > BUDGET_S:
                break
    finally:
        os.sched_setaffinity(0, cpus)
    return ThreadChoice(pick_fastest(speeds), speeds)


def list_candidates(n_cpus: int) -> list[int]:
    """Numbers of threads worth measuring, most first: every one up to 4, then fewer and fewer."""
    numbers = {n_cpus, *range(1, min(4, n_cpus) + 1)}
    n_threads = 6
    while n_threads < n_cpus:
        numbers.add(n_threads)
        n_threads = n_threads * 3 // 2
    return sorted(numbers, reverse=True)[:MAX_CANDIDATES]


def pick_fastest(speeds: Mapping[int, float]) -> int:
    """The fewest threads that are as fast as any other number, but for CLEAR_GAIN."""
    best = max(speeds.values())
    return min(n_threads for n_threads, speed in speeds.items() if speed * CLEAR_GAIN >= best)


def remember_threads(bundle: Path, choice: ThreadChoice, activations: Activations = "int8") -> None:
    """Keep the choice for the next start; UsageError when the file cannot be written."""
    path = find_cache_folder() / FILE_NAME
    entries = dict(_read_entries(path))
    key = _make_key(bundle, activations)
    entries.pop(key, None)  # the newest goes to the end
    entries[key] = {
        "threads": choice.n_threads,
        "tokens_per_s": {str(n): round(speed, 2) for n, speed in choice.decode_tokens_per_s.items()},
    }
    document = {"format_version": FORMAT_VERSION, "entries": dict(list(entries.items())[-MAX_ENTRIES:])}
    data = (json.dumps(document, indent=1) + "\n").encode("ascii")

    def write(file: BinaryIO) -> None:
        file.write(data)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the folder {path.parent}: {error.strerror}", remedy="set EDGEAWQ_CACHE to another folder"
        ) from error
    write_whole(path, write)


def recall_threads(bundle: Path, activations: Activations = "int8") -> int:
    """The remembered number of threads for this CPU and bundle; 0 when it was never measured."""
    path = find_cache_folder() / FILE_NAME
    if not path.is_file():
        return 0
    try:
        entry = _read_entries(path).get(_make_key(bundle, activations), {})
    except EdgeawqError:
        return 0  # no bundle: whoever opens it says so
    return int(entry.get("threads", 0))


def read_cpu_model(cpuinfo: str) -> str:
    """What names the CPU in a /proc/cpuinfo text: the model name, or on Arm the kinds of cores."""
    lines = [tuple(part.strip() for part in line.partition(":")[::2]) for line in cpuinfo.splitlines()]
    names = {value for key, value in lines if key == "model name"}
    parts = {f"{key} {value}" for key, value in lines if key in ("CPU implementer", "CPU part", "Model")}
    return ", ".join(sorted(names | parts))


def _measure_speed(
    open_decoder: Callable[[int], Decoder], n_threads: int, share_s: float, now: Callable[[], float]
) -> float:
    """The best of the single steps, in tokens/s: others on the machine can only slow a step down."""
    start = now()
    with open_decoder(n_threads) as decoder:
        decoder.forward([0] * (CONTEXT_LENGTH // 2 if share_s > 0.1 else 1))
        best = float("inf")
        for _ in range(CONTEXT_LENGTH // 2 - 1):
            begun = now()
            decoder.forward([0])
            done = now()
            best = min(best, done - begun)
            if done - start > share_s:
                break
    return 1 / best if best > 0 else 0.0


def _make_key(bundle: Path, activations: str) -> str:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        cpuinfo = ""
    n_cpus = len(os.sched_getaffinity(0))
    text = "\n".join((read_cpu_model(cpuinfo), str(n_cpus), hash_bundle(bundle), activations))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read_entries(path: Path) -> Mapping[str, dict[str, Any]]:
    """The sound entries of the file; none when it is absent or damaged, for it only saves a measurement."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    entries = document.get("entries") if isinstance(document, dict) else None
    if not isinstance(entries, dict) or document.get("format_version") != FORMAT_VERSION:
        return {}
    return {key: entry for key, entry in entries.items() if _is_sound(entry)}


def _is_sound(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    threads = entry.get("threads")
    return type(threads) is int and 1 <= threads <= MAX_THREADS
