"""Small quantizer runs for tests: a model of a few thousand weights, random text, quick settings."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.checkpoints.tensor_shapes import list_block_linears
from edgeawq.quantize.methods import METHODS
from edgeawq.quantize.recipe import find_recipe
from edgeawq.quantize.settings import QuantizeSettings
from tests.tiny_models import make_tiny_config

SHAPE: dict[str, Any] = {"hidden": 64, "intermediate": 96, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16}
LINEARS = tuple(list_block_linears(make_tiny_config(**SHAPE)))  # of a block
LLAMA_PAIRS = find_recipe(make_tiny_config(**SHAPE))
GRID_METHODS = tuple(name for name, method in METHODS.items() if not method.keeps_channels)
CALIBRATED = tuple(name for name in GRID_METHODS if METHODS[name].needs_text)


def quick_settings(**changes: Any) -> QuantizeSettings:
    """AWQ in groups of 32 on 256 calibration tokens."""
    return QuantizeSettings(**{"group_size": 32, "calibration_tokens": 256, "seqlen": 64, **changes})


def make_text(seed: int, n_characters: int = 2000) -> str:
    """Random words of ASCII letters, in lines."""
    source = random.Random(seed)
    words = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(1, 9))) for _ in range(n_characters)]
    return " ".join(words)[:n_characters]


def write_text(path: Path, seed: int = 1, n_characters: int = 2000) -> Path:
    """A text file with `make_text`."""
    path.write_text(make_text(seed, n_characters), encoding="utf-8")
    return path


def measure_nmse(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """|found - wanted|² / |wanted|² in float64."""
    wanted = wanted.double()
    return float((found.double() - wanted).square().sum() / wanted.square().sum())


def is_same_grid(first: QuantizedLinear, second: QuantizedLinear) -> bool:
    """Whether two grids are equal to the bit."""
    return (first.bits, first.group_size) == (second.bits, second.group_size) and all(
        getattr(first, part).dtype == getattr(second, part).dtype
        and getattr(first, part).tobytes() == getattr(second, part).tobytes()
        for part in ("q", "scales", "zeros")
    )


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
