"""Checks before a run, and what makes two runs the same."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

import edgeawq
from edgeawq.checkpoints.model import Checkpoint
from edgeawq.checkpoints.tensor_shapes import list_linear_shapes
from edgeawq.errors import QuantizationError
from edgeawq.quantize.grid import LARGEST_F16
from edgeawq.quantize.run import FINAL_NORM
from edgeawq.quantize.settings import QuantizeSettings

SAMPLED_ROWS = 16  # of every matrix


def check_vectors(checkpoint: Checkpoint) -> None:
    """Raise QuantizationError for a norm or bias that float16 cannot hold, before hours of work are spent on it."""
    linears = {f"{module}.weight" for module in list_linear_shapes(checkpoint.config)}
    for name in checkpoint.tensor_names():
        if name in linears or not name.startswith(("model.layers.", f"{FINAL_NORM}.")):
            continue
        largest = float(np.abs(checkpoint.tensor(name)).max(initial=0.0))
        if not largest <= LARGEST_F16:  # also true for NaN
            raise QuantizationError(
                f"{name} reaches {largest:.4g}; the checkpoint holds it in float16, up to {LARGEST_F16:.0f}, and "
                "without NaN or infinity",
                remedy="the checkpoint is damaged, or its norms and biases cannot be stored in float16",
            )


def describe_run(
    checkpoint: Checkpoint, settings: QuantizeSettings, group_size: int, calibration: Path | None, device: str
) -> dict[str, object]:
    """What has to be the same for finished blocks to be used again, as JSON values.

    device: its kind; sums on another one differ in their last digits. Of every matrix some rows are compared, which any
    way of changing a model changes.
    """
    config = checkpoint.config
    digest = hashlib.sha256()
    for module, (rows, _) in list_linear_shapes(config).items():
        sample = checkpoint.tensor(f"{module}.weight")[:: max(1, rows // SAMPLED_ROWS)]
        digest.update(np.ascontiguousarray(sample).data)
    return {
        "program": edgeawq.__version__,
        "torch": torch.__version__,
        "device": device,
        "settings": asdict(settings),
        "group_size": group_size,
        "model": {"name": checkpoint.name, "config": repr(replace(config, extra={})), "weights": digest.hexdigest()},
        "calibration": None if calibration is None else str(calibration.absolute()),
    }
