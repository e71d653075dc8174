"""The probes' peaks against what their loops allow: cycles counted by llvm-mca, and operations a cycle measured here.

    python -m benchmarks.probe_throughput [--static-only]

For this machine (its own CPU model in LLVM) the measured figure is the best rate over the best clock of one thread; for
the Arm profiles there is only the count. llvm-mca knows no cache misses: its figure is a bound.
"""

from __future__ import annotations

import argparse
import re
import subprocess

from benchmarks.arm_loops import MODELS, find_tool
from cpu_kernels.build import build
from device_profiles.detect import find_profile
from device_profiles.target import Target
from edgeawq.profiling.measure.compute import measure_clock, measure_compute
from edgeawq.profiling.measure.probe import Probe
from edgeawq.profiling.schema import ComputePoint
from edgeawq.runtime.native import load_object

ITERATIONS = 200
# kind → part of the function's mangled name
FUNCTIONS = {"fp32": "multiply_add", "int8_nibbles": r"_nibbles\w*(?:rows|dots)", "int8_bytes": r"_make_bytes\w*rows"}
PAIRS = r"_make_pairs\w*pairs"  # where there is a product of matrices, both kinds of int8 are this loop
# instruction → operations of it (a multiply-add is two)
OPERATIONS = {
    r"vfmadd\w*ps\s.*%ymm": 16,
    r"vfmadd\w*ps\s.*%zmm": 32,
    r"fmla\s+v\d+\.4s": 8,
    r"vpmaddubsw\s.*%ymm": 64,
    r"vpdpbusd\s.*%zmm": 128,
    r"vpdpbusd\s.*%ymm": 64,
    r"sm(?:ul|la)l2?\s": 16,
    r"sdot\s": 32,
    r"usmmla\s": 64,
}


def find_loop(assembly: str, name: str) -> list[str]:
    """The instructions of the loop with the most multiplications in the functions that hold `name`."""
    best: list[str] = []
    for match in re.finditer(rf"^_ZN\w*{name}\w*:[^\n]*\n(.*?)^\.Lfunc_end", assembly, re.DOTALL | re.MULTILINE):
        lines = [re.sub(r"\s*(?://|# ).*", "", line).strip() for line in match[1].splitlines()]
        labels = {line[:-1]: at for at, line in enumerate(lines) if line.endswith(":")}
        for end, line in enumerate(lines):
            target = re.search(r"(\.LBB\w+)$", line)
            start = labels.get(target[1], end) if target else end
            body = [line for line in lines[start + 1 : end + 1] if line and line[0] != "." and not line.endswith(":")]
            if start < end and count_operations(body) > count_operations(best):
                best = body
    return best


def count_operations(body: list[str]) -> int:
    """Operations of one pass over a loop, from its instructions."""
    return sum(weight for line in body for pattern, weight in OPERATIONS.items() if re.match(pattern, line))


def count_cycles(body: list[str], target: Target, cpu: str, more: list[str]) -> float:
    """Cycles of one pass over a loop, in a steady state."""
    text = "\n".join(re.sub(r"\.LBB\w+$", "0", line) for line in body)
    text = re.sub(r"\.LCPI\w+", "0", text)
    command = [find_tool("llvm-mca"), f"-mtriple={target.triple}", f"-mcpu={cpu}", f"-iterations={ITERATIONS}", *more]
    done = subprocess.run(command, input=text + "\n", capture_output=True, text=True, check=False)
    match = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if not match:
        raise SystemExit(f"llvm-mca failed: {done.stderr.strip()[:1000]}")
    return int(match[1]) / ITERATIONS


def show_static(name: str, target: Target, cpu: str, more: list[str], measured: dict[str, float]) -> None:
    """A line for each kind of arithmetic."""
    assembly = build(target, target.isa, "probe")[1]
    for kind, function in FUNCTIONS.items():
        body = find_loop(assembly, function) or find_loop(assembly, PAIRS)
        operations, cycles = count_operations(body), count_cycles(body, target, cpu, more)
        here = (
            f"measured {measured[kind]:6.1f} ({measured[kind] / (operations / cycles):.0%})" if kind in measured else ""
        )
        print(
            f"{name:8} {kind:13} {operations:5} operations, {len(body):4} instructions, {cycles:6.1f} cycles: "
            f"{operations / cycles:6.1f} a cycle  {here}",
            flush=True,
        )


def measure_host(target: Target) -> dict[str, float]:
    """Operations a cycle by kind, of one thread."""
    native = load_object(build(target, target.isa, "probe")[0])
    with Probe(native, 1) as probe:
        clocks = [measure_clock(probe).hertz.maximum for _ in range(3)]
        points = [point for _ in range(3) for point in measure_compute(probe, target.isa, max(clocks))]
    found: dict[str, float] = {}
    for point in points:
        if isinstance(point, ComputePoint) and point.ops_per_cycle is not None:
            found[point.kind] = max(found.get(point.kind, 0.0), point.ops_per_cycle)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--static-only", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    host = find_profile("host").target
    show_static("host", host, host.cpu, [], {} if arguments.static_only else measure_host(host))
    for board, (cpu, dispatched, _) in MODELS.items():
        target = find_profile(board).target
        show_static(board, target, cpu, ["-mattr=+dotprod,+fullfp16,+i8mm", f"-dispatch={dispatched}"], {})


if __name__ == "__main__":
    main()
