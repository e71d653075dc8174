"""Rotary position embedding: inverse frequencies and their long-context variants (plain numpy, no torch)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.config import ModelConfig, RopeScaling
from edgeawq.errors import UnsupportedModelError


def compute_inverse_frequencies(config: ModelConfig, n_positions: int) -> tuple[npt.NDArray[np.float64], float]:
    """Inverse frequencies in radians per position, shape [head_dim / 2], and the factor for cos and sin.

    n_positions: how long the sequence is; only "dynamic" depends on it. Formulas as in Hugging Face transformers.
    Raises UnsupportedModelError for a scaling kind that is not linear, dynamic, llama3 or yarn.
    """
    scaling = config.rope_scaling
    theta = config.rope_theta
    if scaling is None or scaling.kind == "default":
        return _plain_frequencies(theta, config.head_dim), 1.0
    if scaling.kind == "linear":
        return _plain_frequencies(theta, config.head_dim) / scaling.factor, 1.0
    if scaling.kind == "dynamic":
        limit = config.max_position_embeddings
        length = max(n_positions, limit)
        stretch = scaling.factor * length / limit - (scaling.factor - 1.0)
        return _plain_frequencies(theta * stretch ** (config.head_dim / (config.head_dim - 2)), config.head_dim), 1.0
    if scaling.kind == "llama3":
        return _scale_llama3(_plain_frequencies(theta, config.head_dim), scaling), 1.0
    if scaling.kind == "yarn":
        return _scale_yarn(config, scaling)
    raise UnsupportedModelError(
        f"rope scaling {scaling.kind!r} is not known (known: linear, dynamic, llama3, yarn)",
        remedy="use a model with one of these, or remove rope_scaling from config.json for short contexts",
    )


def compute_rope_tables(
    config: ModelConfig, first: int, n_positions: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """cos and sin for positions first … first + n_positions - 1, each [n_positions, head_dim / 2].

    The frequencies are rounded to float32, which is what checkpoints' own tools compute with and bundles store;
    the angles are taken in float64, so that far positions lose nothing.
    """
    inverse, factor = compute_inverse_frequencies(config, first + n_positions)
    positions = np.arange(first, first + n_positions, dtype=np.float64)
    angles = positions[:, None] * inverse.astype(np.float32).astype(np.float64)[None, :]
    return np.cos(angles) * factor, np.sin(angles) * factor


def _plain_frequencies(theta: float, head_dim: int) -> npt.NDArray[np.float64]:
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    return np.asarray(theta**-exponents, dtype=np.float64)


def _scale_llama3(inverse: npt.NDArray[np.float64], scaling: RopeScaling) -> npt.NDArray[np.float64]:
    """Slow waves are divided by the factor, fast ones kept, those between blended (Llama 3.1)."""
    context = scaling.original_max_position_embeddings
    waves_per_context = context * inverse / (2 * math.pi)
    blend = (waves_per_context - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return np.asarray((1 - blend) * inverse / scaling.factor + blend * inverse, dtype=np.float64)


def _scale_yarn(config: ModelConfig, scaling: RopeScaling) -> tuple[npt.NDArray[np.float64], float]:
    """Interpolates slow dimensions and keeps fast ones, with a linear ramp between (YaRN, Peng et al. 2023)."""
    context = scaling.original_max_position_embeddings or config.max_position_embeddings
    inverse = _plain_frequencies(config.rope_theta, config.head_dim)

    def dimension_of(turns: float) -> float:
        return config.head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(dimension_of(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension_of(scaling.beta_slow)), config.head_dim - 1)
    width = high - low if high != low else 0.001
    ramp = np.clip((np.arange(config.head_dim // 2, dtype=np.float64) - low) / width, 0.0, 1.0)
    mixed = inverse / scaling.factor * ramp + inverse * (1 - ramp)
    factor = scaling.attention_factor or (0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0)
    return mixed, factor
