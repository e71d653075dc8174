"""The probe's read, copy and triad beside the same in C, by turns in one run.

    python -m benchmarks.stream_compare [--threads 1 2] [--megabytes 128] [--rounds 40]

The C program (benchmarks/stream.c) is compiled here with gcc for this machine. Both work on as much memory, in huge
pages, with arrays equally far apart; each round takes a sample of one and then of the other, so that what disturbs the
machine disturbs both. Compared are the best rates, which is what STREAM reports; medians stand beside them.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from pathlib import Path

from cpu_kernels.build import build_probe
from device_profiles.detect import find_profile
from edgeawq.profiling.measure.bandwidth import OPERATIONS, Arena, touch_all
from edgeawq.profiling.measure.probe import Probe
from edgeawq.profiling.schema import MemoryKind
from edgeawq.runtime.native import NativeObject, load_object

SOURCE = Path(__file__).with_name("stream.c")
FLAGS = ["-O3", "-march=native", "-fno-tree-loop-distribute-patterns", "-pthread"]
SKEW = 2112  # as in stream.c and in the arena
AGREEMENT = 0.10


def compile_stream(folder: Path) -> Path:
    """The C program, compiled for this machine."""
    program = folder / "stream"
    subprocess.run(["gcc", *FLAGS, str(SOURCE), "-o", str(program)], check=True)
    return program


class Stream:
    """The C program with its threads, waiting for orders."""

    def __init__(self, program: Path, threads: int, total: int) -> None:
        self._process = subprocess.Popen(
            [str(program), str(threads), str(total)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, kind: str, passes: int) -> float:
        """Bytes per second of one sample."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{kind[0]} {passes}\n")
        self._process.stdin.flush()
        seconds, moved = self._process.stdout.readline().split()
        return float(moved) / float(seconds)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def run_ours(probe: Probe, arena: Arena, kind: MemoryKind, total: int, passes: int) -> float:
    """Bytes per second of one sample."""
    operation, arrays = OPERATIONS[kind]
    share = total // (arrays * probe.n_threads) // 1024 * 1024
    array = share * probe.n_threads + SKEW
    a = arena.address
    run = probe.run(operation, repeats=passes, a=a, b=a + array, c=a + 2 * array, size=share, stride=share)
    return run.work / run.seconds


def compare(native: NativeObject, program: Path, threads: int, total: int, rounds: int) -> bool:
    """Print a line for each kind; True when all best rates agree."""
    agrees = True
    with Probe(native, threads) as probe, Arena(total) as arena, Stream(program, threads, total) as stream:
        touch_all(probe, arena)
        for kind in OPERATIONS:
            passes = max(1, round(0.005 * run_ours(probe, arena, kind, total, 1) / total))
            for warm_up in range(2):
                run_ours(probe, arena, kind, total, passes + warm_up)
                stream.run(kind, passes)
            ours, theirs = [], []
            for _ in range(rounds):
                ours.append(run_ours(probe, arena, kind, total, passes))
                theirs.append(stream.run(kind, passes))
            ratio = max(ours) / max(theirs)
            agrees = agrees and abs(ratio - 1) <= AGREEMENT
            print(
                f"{kind:6} {threads} threads {total / 2**20:8.3g} MiB: "
                f"ours {max(ours) / 1e9:6.2f} GB/s ({statistics.median(ours) / 1e9:.2f}), "
                f"C {max(theirs) / 1e9:6.2f} GB/s ({statistics.median(theirs) / 1e9:.2f}), {ratio - 1:+.1%}",
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
    with tempfile.TemporaryDirectory() as folder:
        program = compile_stream(Path(folder))
        results = [
            compare(native, program, threads, int(size * 2**20), arguments.rounds)
            for size in arguments.megabytes
            for threads in arguments.threads
        ]
    print("all agree within 10 %" if all(results) else "NOT all agree within 10 %")


if __name__ == "__main__":
    main()
