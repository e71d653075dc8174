"""Predicted against measured decode on this machine: what `edgeawq plan` expects of models, and what they do.

    python -m benchmarks.predictions --folder DIR [--shapes smollm2-135m,tinyllama-1.1b,llama2-7b] [--profile FILE]

A model of none of these shapes (360M) is profiled with `edgeawq profile`, or was before (--profile). From the cost of
its operations, and from nothing else, `edgeawq plan` predicts decode of every shape; the predictions are printed before
any of the shapes is run. Then all of them are run, with random weights, in the runtime's own loop with its sampling.
That is repeated, with a new profile each time: where a machine's memory is shared with others, its speed changes within
minutes. The table is Markdown. Bundles and the profile are kept in DIR.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shapes import GROUP_SIZE, SHAPES, Shape, write_bundle
from device_profiles.detect import detect_host
from edgeawq.planning.calibration import apply_measured, calibrate
from edgeawq.planning.device import describe_device
from edgeawq.planning.plan import Workload, make_plan
from edgeawq.planning.shape import read_shape
from edgeawq.profiling.history import read_profile
from edgeawq.profiling.schema import Profile
from edgeawq.profiling.verdict_parts import DISTURBING

CALIBRATING = Shape("smollm2-360m", 960, 2560, 32, 15, 5, 49152, True)
ARCHITECTURES = {"smollm2-135m": "smollm2-135m", "tinyllama-1.1b": "tinyllama-1.1b", "llama2-7b": "llama-2-7b"}
TOKENS = {"smollm2-135m": 128, "tinyllama-1.1b": 32, "llama2-7b": 8}  # of an answer
BITS, HEAD_BITS = 4, 4
POSITION = 128  # tokens in the context before the answer
WITHIN = 0.15

OURS = """
import sys
from pathlib import Path
from edgeawq.profiling.measure.generation import decoder_of, fill_cache, time_tokens
from edgeawq.runtime.engine import open_engine
position, count, threads = map(int, sys.argv[2:])
with open_engine(Path(sys.argv[1]), n_threads=threads, context_length=position + count + 16) as engine:
    fill_cache(decoder_of(engine), position)
    seconds = [token.seconds for token in time_tokens(engine, count)]
print(len(seconds) / sum(seconds))
"""


@dataclass(frozen=True)
class Prediction:
    """Tokens per second of one shape: at the roof, and what is expected. is_from_costs: of each operation."""

    shape: str
    ceiling: float
    expected: float
    bytes_per_token: int
    is_from_costs: bool


def predict(profile: Profile, shape: str) -> Prediction:
    """Decode of a shape in the middle of its answer, on the machine that `profile` was measured on."""
    device = apply_measured(describe_device(detect_host()), profile)
    workload = Workload(context_length=512, prompt_tokens=POSITION + TOKENS[shape] // 2)
    plan = make_plan(read_shape(ARCHITECTURES[shape]), device, workload, calibrate(profile))
    wanted = (BITS, GROUP_SIZE, HEAD_BITS)
    for choice in plan.choices:
        scheme, speed = choice.scheme, choice.decode
        if (scheme.bits, scheme.group_size, scheme.head_bits) == wanted and speed.ceiling_s and speed.expected_s:
            rates = 1 / speed.ceiling_s, 1 / speed.expected_s
            return Prediction(shape, *rates, choice.bytes_per_token, choice.is_calibrated)
    raise SystemExit(f"no prediction for {shape}: the profile has no DRAM roof or no traced decode")


def measure_profile(bundle: Path, threads: int) -> Profile:
    """Profile a bundle in a process of its own."""
    document = bundle.with_suffix(".profile.json")
    command = [sys.executable, "-m", "edgeawq", "profile", "measure", "--bundle", str(bundle), "--no-store"]
    subprocess.run(
        [*command, "--threads", str(threads), "--json", str(document)], check=True, stdout=subprocess.DEVNULL
    )
    return read_profile(document)


def measure_decode(bundle: Path, shape: str, threads: int) -> float:
    """Tokens per second of one answer, in a process of its own."""
    command = [sys.executable, "-c", OURS, str(bundle), str(POSITION), str(TOKENS[shape]), str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def make_row(predictions: Sequence[Prediction], speeds: Sequence[float]) -> str:
    """A line of the table; the last column is each measurement over the expectation before it."""
    sizes = f"{predictions[0].bytes_per_token / 1e6:,.0f} MB"
    expected = [prediction.expected for prediction in predictions]
    ceilings = f"{statistics.median(prediction.ceiling for prediction in predictions):.3g}"
    errors = list_errors(predictions, speeds)
    error = f"{statistics.median(errors):+.0%} ({min(errors):+.0%} … {max(errors):+.0%})"
    return f"| {predictions[0].shape} | {sizes} | {ceilings} | {show(expected)} | {show(speeds)} | {error} |"


def show(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} … {max(values):.3g})"


def list_errors(predictions: Sequence[Prediction], speeds: Sequence[float]) -> list[float]:
    return [speed / prediction.expected - 1 for prediction, speed in zip(predictions, speeds, strict=True)]


def describe_profile(profile: Profile, threads: int) -> str:
    """What the predictions were made from, in a line."""
    roof, calibration = profile.roof("memory", "DRAM"), calibrate(profile)
    if roof is None or not roof.bytes_per_second or calibration is None or profile.model is None:
        raise SystemExit("the profile has no DRAM roof or no traced decode")
    disturbed = list(dict.fromkeys(note.kind for note in profile.notes if note.kind in DISTURBING))
    return (
        f"From a profile of {profile.model.name} with {threads} threads: DRAM {roof.bytes_per_second / 1e9:.3g} GB/s, "
        f"matrices {calibration.weights_bytes_per_s / 1e9:.3g} GB/s; "
        f"{'disturbed: ' + ', '.join(disturbed) if disturbed else 'undisturbed'}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shapes", default=",".join(ARCHITECTURES))
    parser.add_argument("--profile", type=Path, help="a profile that was measured before, of a model of another shape")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    names = options.shapes.split(",")
    if unknown := set(names) - set(ARCHITECTURES):
        parser.error(f"unknown shapes: {', '.join(sorted(unknown))}; there are {', '.join(ARCHITECTURES)}")
    bundles = {name: options.folder / f"{name}.edgeawq" for name in (*names, CALIBRATING.name)}
    for name in names:
        write_bundle(SHAPES[name], bundles[name], bits=BITS, head_bits=HEAD_BITS)
    if options.profile is None:
        write_bundle(CALIBRATING, bundles[CALIBRATING.name], bits=BITS, head_bits=HEAD_BITS)
    predictions: dict[str, list[Prediction]] = {name: [] for name in names}
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.repetitions):
        if options.profile is None:
            profile = measure_profile(bundles[CALIBRATING.name], options.threads)
        else:
            profile = read_profile(options.profile)
        if profile.model is not None and profile.model.name in names:
            parser.error(f"the profile is of {profile.model.name}, which is to be predicted: give one of another shape")
        print(describe_profile(profile, options.threads))
        for name in names:
            prediction = predict(profile, name)
            predictions[name].append(prediction)
            way = "from the cost of each operation" if prediction.is_from_costs else "from the share of the roof"
            print(f"{prediction.shape}: {prediction.expected:.3g} tokens/s expected, {way}", flush=True)
        for name in names:
            speeds[name].append(measure_decode(bundles[name], name, options.threads))
    print("\n| shape | read a token | at most | expected | measured | measured to expected |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in names:
        print(make_row(predictions[name], speeds[name]))
    middles = [statistics.median(list_errors(predictions[name], speeds[name])) for name in names]
    print(f"\nMedian (range). {'All' if all(abs(m) <= WITHIN for m in middles) else 'NOT all'} within {WITHIN:.0%}")


if __name__ == "__main__":
    main()
