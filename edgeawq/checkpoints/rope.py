"""Rotary frequencies with long-context scaling applied: the one place, for the quantizer's model and for bundles.

Sources: RoFormer (Su et al. 2021); linear position interpolation (Chen et al. 2023); YaRN (Peng et al. 2023);
"llama3" as introduced with Llama 3.1; names and defaults as in Hugging Face's config.json.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.config import ModelConfig, RopeScaling
from edgeawq.errors import UnsupportedModelError

Frequencies = npt.NDArray[np.float64]


def compute_inverse_frequencies(config: ModelConfig, n_positions: int = 0) -> tuple[Frequencies, float]:
    """Inverse frequencies in radians per position, [head_dim / 2], and the factor on cosines and sines.

    n_positions: how long the sequence is; only "dynamic" depends on it, and only beyond max_position_embeddings.
    Raises UnsupportedModelError for an unknown kind of scaling or one whose numbers make no sense.
    """
    scaling, theta = config.rope_scaling, config.rope_theta
    if scaling is None or scaling.kind == "default":
        return _plain_frequencies(theta, config.head_dim), 1.0
    _check(scaling)
    if scaling.kind == "linear":
        return _plain_frequencies(theta, config.head_dim) / scaling.factor, 1.0
    if scaling.kind == "dynamic":
        beyond = n_positions / config.max_position_embeddings - 1.0
        if beyond > 0.0:
            theta *= (scaling.factor * beyond + 1.0) ** (config.head_dim / (config.head_dim - 2))
        return _plain_frequencies(theta, config.head_dim), 1.0
    if scaling.kind == "llama3":
        return _scale_llama3(config, scaling), 1.0
    if scaling.kind == "yarn":
        return _scale_yarn(config, scaling), scaling.attention_factor or 0.1 * math.log(max(scaling.factor, 1.0)) + 1.0
    raise UnsupportedModelError(
        f"rope scaling {scaling.kind!r} is not known; known are linear, dynamic, llama3 and yarn",
        remedy="remove rope_scaling from config.json and stay within the context the model was trained on",
    )


def compute_rope(config: ModelConfig) -> tuple[npt.NDArray[np.float32], float]:
    """What a bundle stores: frequencies [head_dim / 2] for positions below max_position_embeddings, and the factor.

    Raises UnsupportedModelError as `compute_inverse_frequencies` does.
    """
    frequencies, factor = compute_inverse_frequencies(config)
    return frequencies.astype(np.float32), factor


def compute_rope_tables(config: ModelConfig, first: int, n_positions: int) -> tuple[Frequencies, Frequencies]:
    """cos and sin for positions first … first + n_positions - 1, each [n_positions, head_dim / 2].

    The frequencies are rounded to float32, which is what checkpoints' own tools compute with and bundles store;
    the angles are taken in float64, so that far positions lose nothing.
    """
    inverse, factor = compute_inverse_frequencies(config, first + n_positions)
    positions = np.arange(first, first + n_positions, dtype=np.float64)
    angles = positions[:, None] * inverse.astype(np.float32).astype(np.float64)[None, :]
    return np.cos(angles) * factor, np.sin(angles) * factor


def _plain_frequencies(theta: float, head_dim: int) -> Frequencies:
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    return np.asarray(theta**-exponents, dtype=np.float64)


def _trained_length(config: ModelConfig, scaling: RopeScaling) -> int:
    return scaling.original_max_position_embeddings or config.max_position_embeddings


def _scale_llama3(config: ModelConfig, scaling: RopeScaling) -> Frequencies:
    # A wave that fits often into the trained length stays; one that hardly fits is stretched; in between: a blend.
    inverse = _plain_frequencies(config.rope_theta, config.head_dim)
    waves = _trained_length(config, scaling) * inverse / (2 * math.pi)
    keep = np.clip((waves - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0, 1.0)
    return np.asarray(keep * inverse + (1 - keep) * inverse / scaling.factor, dtype=np.float64)


def _scale_yarn(config: ModelConfig, scaling: RopeScaling) -> Frequencies:
    # Slow dimensions are interpolated and fast ones kept, with a linear ramp between.
    length, dim = _trained_length(config, scaling), config.head_dim
    inverse = _plain_frequencies(config.rope_theta, dim)

    def find_pair(turns: float) -> float:
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(find_pair(scaling.beta_fast)), 0)
    high = min(math.ceil(find_pair(scaling.beta_slow)), dim - 1)
    stretch = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return np.asarray(inverse * (1 - stretch) + inverse / scaling.factor * stretch, dtype=np.float64)


def _check(scaling: RopeScaling) -> None:
    values = (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor, scaling.beta_fast, scaling.beta_slow)
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise UnsupportedModelError(
            f"rope scaling {scaling.kind!r} has a factor that is not a positive number: {values}",
            remedy="check rope_scaling in config.json",
        )
    if scaling.kind == "llama3" and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise UnsupportedModelError(
            f"rope scaling llama3 has high_freq_factor {scaling.high_freq_factor}, which must be above"
            f" low_freq_factor {scaling.low_freq_factor}",
            remedy="check rope_scaling in config.json",
        )
