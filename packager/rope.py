"""The rotary frequencies a bundle carries, with long-context scaling already applied.

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


def compute_rope(config: ModelConfig) -> tuple[npt.NDArray[np.float32], float]:
    """Inverse frequencies float32 [head_dim / 2] and the factor on cosines and sines (1 except for yarn).

    "dynamic" scaling changes nothing up to max_position_embeddings, which is as far as the runtime goes.
    Raises UnsupportedModelError for an unknown kind of scaling or one whose numbers make no sense.
    """
    scaling = config.rope_scaling
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim  # [head_dim / 2]
    frequencies: Frequencies = config.rope_theta**-exponents
    factor = 1.0
    if scaling is not None:
        _check(scaling)
        if scaling.kind == "linear":
            frequencies = frequencies / scaling.factor
        elif scaling.kind == "llama3":
            frequencies = _scale_llama3(frequencies, scaling, _trained_length(config, scaling))
        elif scaling.kind == "yarn":
            frequencies = _scale_yarn(frequencies, config, scaling)
            factor = scaling.attention_factor or 0.1 * math.log(max(scaling.factor, 1.0)) + 1.0
        elif scaling.kind not in ("dynamic", "default"):
            raise UnsupportedModelError(
                f"rope scaling {scaling.kind!r} is not known; known are linear, dynamic, llama3 and yarn",
                remedy="remove rope_scaling from config.json and stay within the context the model was trained on",
            )
    return frequencies.astype(np.float32), factor


def _trained_length(config: ModelConfig, scaling: RopeScaling) -> int:
    return scaling.original_max_position_embeddings or config.max_position_embeddings


def _scale_llama3(frequencies: Frequencies, scaling: RopeScaling, length: int) -> Frequencies:
    # A wave that fits often into the trained length stays; one that hardly fits is stretched; in between: a blend.
    waves = length * frequencies / (2 * math.pi)
    keep = np.clip((waves - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0, 1.0)
    blended: Frequencies = keep * frequencies + (1 - keep) * frequencies / scaling.factor
    return blended


def _scale_yarn(frequencies: Frequencies, config: ModelConfig, scaling: RopeScaling) -> Frequencies:
    length = _trained_length(config, scaling)
    dim = config.head_dim

    def find_pair(rotations: float) -> float:
        return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(find_pair(scaling.beta_fast)), 0)
    high = min(math.ceil(find_pair(scaling.beta_slow)), dim - 1)
    stretch = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    blended: Frequencies = frequencies * (1 - stretch) + frequencies / scaling.factor * stretch
    return blended


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
