"""The probe's read, copy and triad beside the same in C, by turns in one run, on the same memory.

    python -m benchmarks.stream_compare [--threads 1 2] [--megabytes 128] [--rounds 40]

The C loops (benchmarks/stream.c) are compiled here with gcc for this machine and called in this process: which memory
a process gets, in how large pages and at which places, alone makes some percent. Each round takes a sample of one and
one of the other, now this one first and now that one, so that what disturbs the machine disturbs both. Compared are the
best rates, which is what STREAM reports, and the medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from ctypes import CDLL, c_double, c_int, c_size_t, c_void_p
from pathlib import Path

from cpu_kernels.build import build_probe
from device_profiles.detect import find_profile
from edgeawq.profiling.measure.bandwidth import OPERATIONS, Arena, touch_all
from edgeawq.profiling.measure.probe import Probe
from edgeawq.profiling.schema import MemoryKind
from edgeawq.runtime.native import NativeObject, load_object

SOURCE = Path(__file__).with_name("stream.c")
# LLVM unrolls the probe's loops. A copy that is not unrolled is an eighth faster with one thread on Zen 3.
FLAGS = [
    *("-O3", "-march=native", "-funroll-loops", "-fno-tree-loop-distribute-patterns"),
    *("-pthread", "-shared", "-fPIC"),
]
SKEW = 2112  # as in stream.c and in the arena
AGREEMENT = 0.10
SAMPLE_S = 0.005


def compile_stream(folder: Path) -> CDLL:
    """The C loops, compiled for this machine."""
    library = folder / "stream.so"
    subprocess.run(["gcc", *FLAGS, str(SOURCE), "-o", str(library)], check=True)
    loaded = CDLL(str(library))
    loaded.stream_start.argtypes = [c_int, c_void_p, c_size_t]
    loaded.stream_run.argtypes, loaded.stream_run.restype = [c_int, c_int], c_double
    return loaded


class Stream:
    """The C loops with their threads, on the arena's memory."""

    def __init__(self, library: CDLL, threads: int, arena: Arena) -> None:
        self._library = library
        if library.stream_start(threads, arena.address, arena.size):
            raise SystemExit(f"{threads} threads could not be started")

    def run(self, kind: MemoryKind, passes: int) -> float:
        """Bytes per second of one sample."""
        return float(self._library.stream_run(ord(kind[0]), passes))

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.stream_stop()


def run_ours(probe: Probe, arena: Arena, kind: MemoryKind, passes: int) -> float:
    """Bytes per second of one sample."""
    operation, arrays = OPERATIONS[kind]
    share = arena.size // (arrays * probe.n_threads) // 1024 * 1024
    array = share * probe.n_threads + SKEW
    a = arena.address
    run = probe.run(operation, repeats=passes, a=a, b=a + array, c=a + 2 * array, size=share, stride=share)
    return run.work / run.seconds


def compare(native: NativeObject, library: CDLL, threads: int, total: int, rounds: int) -> bool:
    """Print a line for each kind; True when all best rates and medians agree."""
    agrees = True
    with Probe(native, threads) as probe, Arena(total) as arena, Stream(library, threads, arena) as stream:
        touch_all(probe, arena)
        for kind in OPERATIONS:
            passes = max(1, round(SAMPLE_S * run_ours(probe, arena, kind, 1) / total))
            ours: list[float] = []
            theirs: list[float] = []
            for index in range(rounds + 2):  # the first two warm up
                if index % 2:
                    theirs.append(stream.run(kind, passes))
                ours.append(run_ours(probe, arena, kind, passes))
                if not index % 2:
                    theirs.append(stream.run(kind, passes))
            best, best_c = max(ours[2:]), max(theirs[2:])
            median, median_c = statistics.median(ours[2:]), statistics.median(theirs[2:])
            differences = (best / best_c - 1, median / median_c - 1)
            agrees = agrees and all(abs(difference) <= AGREEMENT for difference in differences)
            print(
                f"| {kind} {total / 2**20:.3g} MiB | {threads} | {best / 1e9:.1f} | {best_c / 1e9:.1f} | "
                f"{differences[0]:+.1%} | {median / 1e9:.1f} | {median_c / 1e9:.1f} | {differences[1]:+.1%} |",
                flush=True,
            )
    return agrees


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[128])
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    target = find_profile("host").target
    native = load_object(build_probe(target, target.isa))
    print("| GB/s | threads | ours, best | C, best | | ours, median | C, median | |\n|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        library = compile_stream(Path(folder))
        results = [
            compare(native, library, threads, int(size * 2**20), arguments.rounds)
            for size in arguments.megabytes
            for threads in arguments.threads
        ]
    print(f"\n{'all agree' if all(results) else 'NOT all agree'} within {AGREEMENT:.0%}")


if __name__ == "__main__":
    main()
