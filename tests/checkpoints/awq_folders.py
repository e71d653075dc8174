"""Tiny AutoAWQ folders written by edgeawq, from the models of tests.tiny_models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeawq.checkpoints.write_awq import write_awq_checkpoint
from tests.tiny_models import TinyCheckpoint, make_tiny_model


def write_model(folder: Path, model: TinyCheckpoint, **options: Any) -> Path:
    """Write an in-memory model; `options` go to `write_awq_checkpoint` and win."""
    assert model.quantization is not None
    heads = {module: grid for module, grid in model.grids.items() if not module.startswith("model.layers.")}
    linears = {module: grid for module, grid in model.grids.items() if module.startswith("model.layers.")}
    floats = {name: values for name, values in model.tensors.items() if name.removesuffix(".weight") not in model.grids}
    arguments: dict[str, Any] = {
        "config": model.config,
        "tokenizer": model.tokenizer,
        "generation_defaults": model.generation_defaults,
        "quantization": model.quantization,
        "tensors": floats.items(),
        "linears": linears.items(),
        "grids": heads,
        "source_config": {},
        "extra_files": {"quantization_report.json": b"{}"},
    }
    return write_awq_checkpoint(folder, **(arguments | options))


def make_awq_folder(folder: Path, seed: int = 0, **shape: Any) -> TinyCheckpoint:
    """Write a tiny quantized model to `folder` and return it."""
    model = make_tiny_model(seed, **shape)
    write_model(folder, model)
    return model
