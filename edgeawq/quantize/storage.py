"""What a model costs to store: bits per weight and bytes on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from edgeawq.checkpoints.analysis import read_analysis
from edgeawq.checkpoints.model import Checkpoint, QuantizedLinear
from edgeawq.checkpoints.tensor_shapes import list_expected_shapes, list_linear_shapes

WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin")


@dataclass(frozen=True)
class Storage:
    """Size of a model; figures that its format does not tell are None."""

    n_weights: int  # of the whole model
    bits: float | None  # on the grid, mean over the blocks' linear layers; None for a float model
    bits_per_weight: float | None  # the same with scales and zeros; of a float model, of the whole file
    file_bytes: int | None


def measure_storage(checkpoint: Checkpoint) -> Storage:
    """Size of a checkpoint, float or quantized; reads every quantized layer once, one at a time."""
    n_weights = sum(math.prod(shape) for shape in list_expected_shapes(checkpoint.config).values())
    file_bytes = measure_files(checkpoint)
    whole = 8 * file_bytes / n_weights if file_bytes is not None else None
    analysis = read_analysis(checkpoint.config)
    if analysis is not None:
        return Storage(n_weights, analysis.bits, analysis.bits_per_weight, file_bytes)
    if checkpoint.quantization is None:
        return Storage(n_weights, None, whole, file_bytes)
    weights, grid_bits, stored_bits = 0, 0.0, 0.0
    for module, shape in list_linear_shapes(checkpoint.config).items():
        size = math.prod(shape)
        linear = checkpoint.quantized_linear(module)
        weights += size
        grid_bits += size * (linear.bits if linear is not None else 16)
        stored_bits += count_bits(linear) if linear is not None else 16 * size
    return Storage(n_weights, grid_bits / weights, stored_bits / weights, file_bytes)


def count_bits(linear: QuantizedLinear) -> int:
    """Bits of a layer: its values, a float16 scale and a zero of as many bits as a value for every group."""
    return linear.q.size * linear.bits + linear.scales.size * 16 + linear.zeros.size * linear.bits


def measure_files(checkpoint: Checkpoint) -> int | None:
    """Bytes of the weight files; None for a model that is not on disk."""
    # Every kind of checkpoint on disk is either a folder or a file, and knows which.
    place = getattr(checkpoint, "folder", None) or getattr(checkpoint, "path", None)
    return measure_weight_files(place) if isinstance(place, Path) else None


def measure_weight_files(place: Path) -> int:
    """Bytes of a file, or of the weight files of a folder."""
    if place.is_file():
        return place.stat().st_size
    return sum(file.stat().st_size for file in place.iterdir() if file.suffix in WEIGHT_SUFFIXES)
