"""Predicted against measured decode on this machine: what `edgeawq plan` expects of models, and what they do.

    python -m benchmarks.predictions --folder DIR [--shapes smollm2-135m,tinyllama-1.1b,llama2-7b] [--calibrate SHAPE]

One shape is profiled (`edgeawq profile`); from the cost of its operations decode of every shape is predicted. Then all
of them are run in turn, with random weights, and a Markdown table is printed. Bundles are kept in DIR.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peer_speed import DECODE_TOKENS, run_ours
from benchmarks.shapes import GROUP_SIZE, SHAPES, write_bundle
from device_profiles.detect import detect_host
from edgeawq.planning.calibration import apply_measured, calibrate
from edgeawq.planning.device import describe_device
from edgeawq.planning.plan import Workload, make_plan
from edgeawq.planning.shape import read_shape
from edgeawq.profiling.history import read_profile
from edgeawq.profiling.schema import Profile

ARCHITECTURES = {"smollm2-135m": "smollm2-135m", "tinyllama-1.1b": "tinyllama-1.1b", "llama2-7b": "llama-2-7b"}
BITS, HEAD_BITS = 4, 4


@dataclass(frozen=True)
class Prediction:
    """Tokens per second of one shape: at the roof, and what is expected."""

    shape: str
    ceiling: float
    expected: float


def predict(profile: Profile, shape: str, position: int) -> Prediction:
    """Decode of a shape with `position` tokens in its context, on the machine that `profile` was measured on."""
    device = apply_measured(describe_device(detect_host()), profile)
    workload = Workload(context_length=512, prompt_tokens=position)
    plan = make_plan(read_shape(ARCHITECTURES[shape]), device, workload, calibrate(profile))
    wanted = (BITS, GROUP_SIZE, HEAD_BITS)
    for choice in plan.choices:
        scheme, speed = choice.scheme, choice.decode
        if (scheme.bits, scheme.group_size, scheme.head_bits) == wanted and speed.ceiling_s and speed.expected_s:
            return Prediction(shape, 1 / speed.ceiling_s, 1 / speed.expected_s)
    raise SystemExit(f"no prediction for {shape}: the profile has no DRAM roof or no traced decode")


def measure_profile(bundle: Path, threads: int) -> Profile:
    """Profile a bundle in a process of its own."""
    document = bundle.with_suffix(".profile.json")
    command = [sys.executable, "-m", "edgeawq", "profile", "measure", "--bundle", str(bundle), "--no-store"]
    subprocess.run(
        [*command, "--threads", str(threads), "--json", str(document)], check=True, stdout=subprocess.DEVNULL
    )
    return read_profile(document)


def make_row(prediction: Prediction, speeds: Sequence[float]) -> str:
    """A line of the table; the last column is the measured median over the expectation."""
    median = statistics.median(speeds)
    spread = f"{median:.3g} ({min(speeds):.3g} … {max(speeds):.3g})"
    error = f"{100 * (median / prediction.expected - 1):+.0f} %"
    return f"| {prediction.shape} | {prediction.ceiling:.3g} | {prediction.expected:.3g} | {spread} | {error} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shapes", default=",".join(ARCHITECTURES))
    parser.add_argument("--calibrate", default="smollm2-135m", choices=ARCHITECTURES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    names = options.shapes.split(",")
    bundles = {name: options.folder / f"{name}.edgeawq" for name in dict.fromkeys([options.calibrate, *names])}
    for name, bundle in bundles.items():
        write_bundle(SHAPES[name], bundle, bits=BITS, head_bits=HEAD_BITS)
    profile = measure_profile(bundles[options.calibrate], options.threads)
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.repetitions):
        for name in names:
            speeds[name].append(run_ours(bundles[name], options.threads, 0, DECODE_TOKENS[name])["decode"])
    print(f"calibrated with {options.calibrate}, {options.threads} threads\n")
    print("| shape | at most | expected | measured, median (range) | measured to expected |\n|---|---:|---:|---:|---:|")
    for name in names:
        print(make_row(predict(profile, name, DECODE_TOKENS[name] // 2), speeds[name]))


if __name__ == "__main__":
    main()
