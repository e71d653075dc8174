"""Other quantizers beside ours: same calibration tokens, same evaluation, same bits and group size, one run each.

    python -m benchmarks.quantizer_peers prepare DIR                 # an environment for every peer (pip, minutes)
    python -m benchmarks.quantizer_peers run DIR --text valid.txt    # quantize with every peer and with edgeawq
    python -m benchmarks.quantizer_peers evaluate DIR --text valid.txt
    python -m benchmarks.quantizer_peers show DIR                    # the table

Calibration: the text's last `--calib-tokens`, evaluation its first `--eval-tokens` (plain chunks of 1024, float32).
Only the blocks' linear layers are quantized. What a peer makes is written back as float weights, so that every
model is evaluated by the same program and no format stands between. Time and memory are of the whole process,
imports and reading included; run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeawq.checkpoints.hf_config import describe_hf_config
from edgeawq.checkpoints.model import Checkpoint
from edgeawq.checkpoints.open_model import open_model
from edgeawq.checkpoints.safetensors_writer import SafetensorsWriter
from edgeawq.checkpoints.tensor_shapes import list_expected_shapes
from edgeawq.checkpoints.write_awq import describe_generation, describe_tokenizer
from edgeawq.quantize.calibration import make_encoder
from edgeawq.quantize.evaluate import keep_reference, score_model
from edgeawq.quantize.parallel import start_workers
from edgeawq.quantize.perplexity import stream_model
from edgeawq.quantize.scores import EvaluationSetting, make_windows, summarize_scores

DRIVERS = Path(__file__).parent / "quantizer_drivers"
SEQLEN = 512
# environment → pip packages in the order of their installation; "--" marks options.
ENVIRONMENTS = {
    "llm-compressor": [["llmcompressor"]],
    "auto-round": [["auto-round"]],
    "gptqmodel": [["torch", "numpy", "setuptools", "wheel"], ["--no-build-isolation", "gptqmodel"]],
    # Its newest release wants the transformers of its time, and these want older data sets.
    "autoawq": [
        ["torch<2.8", "setuptools", "wheel"],
        ["--no-build-isolation", "autoawq==0.2.9"],
        ["transformers==4.51.3", "datasets<4"],
    ],
}


@dataclass(frozen=True)
class Peer:
    """One way to quantize: ours (`arguments` of edgeawq quantize) or a peer's driver with its method."""

    name: str
    environment: str = ""
    driver: str = ""
    arguments: tuple[str, ...] = ()


PEERS = (
    Peer("edgeawq rtn", arguments=("--method", "rtn")),
    Peer("edgeawq awq", arguments=("--method", "awq")),
    Peer("edgeawq gptq", arguments=("--method", "gptq")),
    Peer("edgeawq gptq act-order", arguments=("--method", "gptq", "--act-order")),
    Peer("edgeawq awq+gptq", arguments=("--method", "awq+gptq")),
    Peer("edgeawq awq+round 40", arguments=("--method", "awq+round", "--rounding-steps", "40")),
    Peer("edgeawq awq+round 100", arguments=("--method", "awq+round", "--rounding-steps", "100")),
    Peer("llm-compressor AWQ", "llm-compressor", "llm_compressor_driver.py", ("--method", "awq")),
    Peer("llm-compressor GPTQ", "llm-compressor", "llm_compressor_driver.py", ("--method", "gptq")),
    Peer("AutoAWQ", "autoawq", "autoawq_driver.py"),
    Peer("GPTQModel", "gptqmodel", "gptqmodel_driver.py"),
    Peer("GPTQModel act-order", "gptqmodel", "gptqmodel_driver.py", ("--method", "act-order")),
    Peer("AutoRound 50", "auto-round", "auto_round_driver.py", ("--iterations", "50")),
    Peer("AutoRound 200", "auto-round", "auto_round_driver.py", ("--iterations", "200")),
)


@dataclass(frozen=True)
class Run:
    """What one quantization cost."""

    peer: str
    wall_s: float
    cpu_s: float
    peak_gib: float
    load_before: float  # of the machine, the first figure of /proc/loadavg


def prepare(folder: Path) -> None:
    """Make an environment for every peer."""
    for name, steps in ENVIRONMENTS.items():
        home = folder / "environments" / name
        if not home.exists():
            subprocess.run([sys.executable, "-m", "venv", home], check=True)
        for packages in steps:
            subprocess.run([home / "bin" / "pip", "install", "--quiet", *packages], check=True)
        print(f"{name}: ready")


def write_float_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """The model as a Hugging Face folder in float32, which every peer reads."""
    folder.mkdir(parents=True, exist_ok=True)
    with SafetensorsWriter(folder / "model.safetensors", {"format": "pt"}) as writer:
        for name in list_expected_shapes(checkpoint.config):
            writer.add(name, checkpoint.tensor(name))
        writer.finish()
    described = describe_hf_config(checkpoint.config, checkpoint.config.extra) | {"torch_dtype": "float32"}
    described["dtype"] = described["torch_dtype"]
    for name, content in (
        ("config.json", described),
        ("generation_config.json", describe_generation(checkpoint.config, checkpoint.generation_defaults)),
        ("tokenizer_config.json", describe_tokenizer(checkpoint.config, checkpoint.tokenizer)),
    ):
        (folder / name).write_text(json.dumps(content, indent=1))
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer.tokenizer_json)


def split_text(text: Path, checkpoint: Checkpoint, calib_tokens: int, folder: Path) -> None:
    """Write the last calib_tokens of a text as tokens [sequences, SEQLEN], and as a text that has these tokens."""
    encode = make_encoder(checkpoint.tokenizer, checkpoint.config)
    whole = text.read_text(encoding="utf-8")
    tokens = encode(whole)[-calib_tokens:]
    np.save(folder / "calibration.npy", np.array(tokens, np.int32).reshape(-1, SEQLEN))
    from tokenizers import Tokenizer

    written = Tokenizer.from_str(checkpoint.tokenizer.tokenizer_json).decode(tokens, skip_special_tokens=False)
    (folder / "calibration.txt").write_text(written, encoding="utf-8")
    if encode(written) != tokens:
        print("note: the calibration text does not have the very same tokens again")


def run_process(command: list[str | Path], log: Path, environment: dict[str, str]) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, peak GiB) of a command; ends the program where it fails."""
    before = time.perf_counter()
    with log.open("w") as output:
        # Some peers write logs into the folder that they run in.
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | environment, cwd=log.parent)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"ended with {os.waitstatus_to_exitcode(status)}; see {log}")
    return time.perf_counter() - before, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / (1 << 20)


def run_peer(peer: Peer, folder: Path, output: Path, model: str, bits: int, group_size: int, seed: int) -> Run:
    """Quantize once."""
    load = os.getloadavg()[0]
    threads = {
        "OMP_NUM_THREADS": "2",
        "HF_HUB_OFFLINE": "1",
        "GPTQMODEL_CPU_WORKERS": "2",
        "TOKENIZERS_PARALLELISM": "0",
    }
    if peer.driver:
        command: list[str | Path] = [
            folder / "environments" / peer.environment / "bin" / "python", DRIVERS / peer.driver,
            "--model", folder / "float", "--tokens", folder / "calibration.npy", "--output", output,
            "--bits", str(bits), "--group-size", str(group_size), *peer.arguments,
        ]  # fmt: skip
    else:
        command = [
            sys.executable, "-m", "edgeawq", "quantize", model, "-o", output, "--bits", str(bits),
            "--group-size", str(group_size), "--head-bits", "16", "--seed", str(seed), "--overwrite",
        ]  # fmt: skip
        if "rtn" not in peer.arguments:
            calibration = np.load(folder / "calibration.npy")
            command += ["--calib", folder / "calibration.txt", "--calib-tokens", str(calibration.size)]
        command += peer.arguments
    return Run(peer.name, *run_process(command, output.with_suffix(".log"), threads), load)


def evaluate(models: dict[str, Path], reference: str, text: Path, n_tokens: int) -> dict[str, dict[str, object]]:
    """Perplexity and divergence of every model folder."""
    checkpoint = open_model(reference)
    encode = make_encoder(checkpoint.tokenizer, checkpoint.config)
    tokens = torch.tensor(encode(text.read_text(encoding="utf-8"))[:n_tokens])
    windows = make_windows(tokens, EvaluationSetting(n_tokens))
    found: dict[str, dict[str, object]] = {}
    with start_workers() as workers, torch.no_grad():
        source = stream_model(checkpoint)
        with keep_reference(source, windows) as states:
            base = score_model(source, windows, workers, fill=states)
            found["float"] = asdict(summarize_scores(base))
            for name, path in models.items():
                scores = score_model(stream_model(open_model(str(path))), windows, workers, reference=states)
                found[name] = asdict(summarize_scores(scores, base))
    return found


def run(options: argparse.Namespace) -> None:
    """Quantize with every chosen peer that is not done yet."""
    folder: Path = options.folder
    checkpoint = open_model(options.model)
    if not (folder / "float" / "tokenizer.json").is_file():
        write_float_folder(checkpoint, folder / "float")
    split_text(options.text, checkpoint, options.calib_tokens, folder)
    for peer in PEERS:
        known = read_results(options)
        if (options.peer and peer.name not in options.peer) or peer.name in known:
            continue
        output = find_output(options, peer.name)
        try:
            cost = run_peer(peer, folder, output, options.model, options.bits, options.group_size, options.seed)
        except (RuntimeError, OSError) as error:
            print(f"{peer.name}: {error}", flush=True)
            continue
        write_results(options, known | {peer.name: asdict(cost)})
        print(f"{peer.name}: {cost.wall_s:.0f} s, {cost.cpu_s:.0f} s of CPU, {cost.peak_gib:.2f} GiB", flush=True)


def evaluate_all(options: argparse.Namespace) -> None:
    """Evaluate what was quantized and not evaluated yet, beside the float model."""
    known = read_results(options)
    missing = [name for name, entry in known.items() if "score" not in entry]
    found = evaluate(
        {name: find_output(options, name) for name in missing}, options.model, options.text, options.eval_tokens
    )
    for name, score in found.items():
        known.setdefault(name, {})["score"] = score
    write_results(options, known)


def find_output(options: argparse.Namespace, name: str) -> Path:
    """The folder of a quantized model."""
    folder: Path = options.folder
    return folder / f"{name.replace(' ', '-')}-w{options.bits}g{options.group_size}"


def read_results(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What is known so far, by the peer's name."""
    path = options.folder / f"results-w{options.bits}g{options.group_size}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def write_results(options: argparse.Namespace, results: dict[str, dict[str, Any]]) -> None:
    """Remember results."""
    path = options.folder / f"results-w{options.bits}g{options.group_size}.json"
    path.write_text(json.dumps(results, indent=1))


def show(folder: Path) -> None:
    """Print the results as Markdown."""
    for results in sorted(folder.glob("results-*.json")):
        print(f"\n{results.stem.removeprefix('results-')}\n")
        print("| quantizer | perplexity | KL, mean | same top token | wall s | CPU s | peak GiB |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for name, entry in json.loads(results.read_text()).items():
            if "score" not in entry:
                continue
            score, divergence = entry["score"], entry["score"]["divergence"]
            kl = f"{divergence['mean']:.4f} | {100 * divergence['top1_agreement']:.1f} %" if divergence else "– | –"
            cost = (
                f"{entry['wall_s']:.0f} | {entry['cpu_s']:.0f} | {entry['peak_gib']:.2f}"
                if "wall_s" in entry
                else "– | – | –"
            )
            print(f"| {name} | {score['perplexity']:.3f} | {kl} | {cost} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "run", "evaluate", "show"):
        commands.add_parser(name).add_argument("folder", type=lambda text: Path(text).resolve())
    for name in ("run", "evaluate"):
        parser_of = commands.choices[name]
        parser_of.add_argument("--text", type=Path, required=True)
        parser_of.add_argument("--model", default="embedded:smollm2-135m-instruct")
        parser_of.add_argument("--bits", type=int, default=4)
        parser_of.add_argument("--group-size", type=int, default=64)
    runner = commands.choices["run"]
    runner.add_argument("--seed", type=int, default=0)
    runner.add_argument("--calib-tokens", type=int, default=16 * SEQLEN)
    commands.choices["evaluate"].add_argument("--eval-tokens", type=int, default=12 * 1024)
    runner.add_argument("--peer", action="append", choices=[peer.name for peer in PEERS], help="only this one; repeat")
    options = parser.parse_args()
    # The programs run in the results' folder: edgeawq must be found from there too.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")])
    )
    if options.command == "run":
        run(options)
    elif options.command == "evaluate":
        evaluate_all(options)
    elif options.command == "prepare":
        prepare(options.folder)
    else:
        show(options.folder)


if __name__ == "__main__":
    main()
