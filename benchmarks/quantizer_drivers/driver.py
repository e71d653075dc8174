"""What every peer's driver shares: its arguments, and the dequantized model that it writes for the evaluation.

Runs in the peer's own environment, which has no edgeawq: torch, transformers and safetensors only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

OTHER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True)
class Task:
    """One quantization that a peer is asked for."""

    model: Path  # Hugging Face folder in float32
    tokens: torch.Tensor  # [sequences, seqlen] calibration tokens
    output: Path
    method: str
    bits: int
    group_size: int
    iterations: int


def read_task() -> Task:
    """The task from the command line."""
    parser = argparse.ArgumentParser()
    for name in ("model", "tokens", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--method", default="")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(2)
    return Task(
        model=given.model,
        tokens=torch.from_numpy(np.load(given.tokens)).long(),
        output=given.output,
        method=given.method,
        bits=given.bits,
        group_size=given.group_size,
        iterations=given.iterations,
    )


def write_result(task: Task, weights: dict[str, torch.Tensor], seconds: float) -> None:
    """Write the float model with `weights` in place of its own, as a folder that any tool reads."""
    tensors = load_file(task.model / "model.safetensors")
    unknown = set(weights) - set(tensors)
    if unknown:
        raise SystemExit(f"the peer has tensors that the model lacks: {sorted(unknown)[:3]}")
    changed = 0
    for name, weight in weights.items():
        found = weight.detach().float().cpu().numpy()
        if found.shape != tensors[name].shape:
            raise SystemExit(f"{name} has shape {found.shape}, not {tensors[name].shape}")
        changed += not np.array_equal(found, tensors[name])
        tensors[name] = np.ascontiguousarray(found)
    task.output.mkdir(parents=True, exist_ok=True)
    for name in OTHER_FILES:
        if (task.model / name).is_file():
            shutil.copyfile(task.model / name, task.output / name)
    save_file(tensors, task.output / "model.safetensors", metadata={"format": "pt"})
    (task.output / "peer.json").write_text(json.dumps({"seconds": seconds, "changed_tensors": changed}))


def time_call(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    before = time.perf_counter()
    function()
    return time.perf_counter() - before
