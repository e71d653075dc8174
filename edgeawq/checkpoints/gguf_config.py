"""The metadata of a GGUF file as a ModelConfig."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.config import ModelConfig, RopeScaling
from edgeawq.checkpoints.gguf_tokenizer import Vocabulary
from edgeawq.checkpoints.limits import check_dimensions
from edgeawq.errors import CheckpointError, UnsupportedModelError

ARCHITECTURES = ("llama", "qwen2")
# Factors that other families put into the same graph; a model that uses one is not a plain Llama.
MUST_BE_ABSENT = ("expert_count", "embedding_scale", "residual_scale", "logit_scale", "attention.scale")
LLAMA3_ORIGINAL_CONTEXT = 8192


def read_gguf_config(
    metadata: Mapping[str, object], vocabulary: Vocabulary, tied: bool, biases: tuple[bool, bool, bool]
) -> ModelConfig:
    """The shape of the model; `biases` says whether q/k/v, o and the MLP have bias tensors.

    Raises UnsupportedModelError for another family, CheckpointError for missing or impossible values.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"the GGUF file holds a model of the family {architecture!r}; supported are {', '.join(ARCHITECTURES)}",
            remedy="choose a model of the Llama family (Llama, Mistral, SmolLM2, TinyLlama, Qwen2 …)",
        )
    reader = _MetadataReader(metadata, str(architecture))
    for key in MUST_BE_ABSENT:
        if metadata.get(f"{architecture}.{key}") not in (None, 0, 0.0, 1.0):
            raise UnsupportedModelError(
                f"the GGUF file sets {architecture}.{key} = {metadata[f'{architecture}.{key}']}, "
                "which a plain Llama model does not have",
                remedy="mixtures of experts and scaled variants are not supported; choose a dense Llama-family model",
            )
    n_heads = reader.read_int("attention.head_count")
    hidden_size = reader.read_int("embedding_length")
    head_dim = reader.read_int("attention.key_length", hidden_size // max(1, n_heads))
    rotary = reader.read_int("rope.dimension_count", head_dim)
    if rotary != head_dim or reader.read_int("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(
            f"the GGUF file rotates {rotary} of {head_dim} features per head; only full rotation is supported"
        )
    qkv_bias, output_bias, mlp_bias = biases
    config = ModelConfig(
        model_type=str(architecture),
        hidden_size=hidden_size,
        intermediate_size=reader.read_int("feed_forward_length"),
        n_layers=reader.read_int("block_count"),
        n_heads=n_heads,
        n_kv_heads=reader.read_int("attention.head_count_kv", n_heads),
        head_dim=head_dim,
        vocab_size=len(vocabulary.tokens),
        # The file holds float32: 1e-5 reads as 9.9999997e-06.
        rms_norm_eps=round_float32(reader.read_float("attention.layer_norm_rms_epsilon")),
        rope_theta=round_float32(reader.read_float("rope.freq_base", 10000.0)),
        max_position_embeddings=reader.read_int("context_length"),
        tie_word_embeddings=tied,
        attention_bias=qkv_bias,
        attention_output_bias=output_bias if qkv_bias else True,
        mlp_bias=mlp_bias,
        rope_scaling=read_rope_scaling(reader),
        bos_token_id=vocabulary.bos_token_id,
        eos_token_ids=vocabulary.end_of_turn_ids,
        extra={key: value for key, value in metadata.items() if not isinstance(value, list)},
    )
    check_dimensions(config, "the GGUF file")
    return config


def read_rope_scaling(reader: _MetadataReader) -> RopeScaling | None:
    """Linear and YaRN scaling are in the metadata; llama3 scaling is a tensor (see `recognize_llama3_scaling`)."""
    kind = reader.metadata.get(f"{reader.prefix}.rope.scaling.type", "none")
    factor = reader.read_float("rope.scaling.factor", reader.read_float("rope.scale_linear", 1.0))
    original = reader.read_int("rope.scaling.original_context_length", reader.read_int("context_length"))
    if kind in ("none", "linear"):
        return RopeScaling(kind="linear", factor=factor) if factor not in (0.0, 1.0) else None
    if kind == "yarn":
        return RopeScaling(
            kind="yarn",
            factor=factor,
            original_max_position_embeddings=original,
            attention_factor=reader.read_float("rope.scaling.attn_factor", 0.0),
            beta_fast=reader.read_float("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=reader.read_float("rope.scaling.yarn_beta_slow", 1.0),
        )
    raise UnsupportedModelError(f"the GGUF file scales rotary positions by {kind!r}; known are linear, yarn and llama3")


def recognize_llama3_scaling(factors: npt.NDArray[np.float32], head_dim: int, rope_theta: float) -> RopeScaling | None:
    """The parameters behind the tensor `rope_freqs.weight` [head_dim / 2] of frequency divisors.

    llama.cpp's converter evaluates the llama3 rule and keeps only its result. With low_freq_factor at 1, as all Llama 3
    models have it, the rest follows: the divisor of the slowest frequency is `factor`, and the ramp between gives
    high_freq_factor and the original context. Raises UnsupportedModelError where no such parameters give the tensor.
    """
    if factors.shape != (head_dim // 2,) or not np.isfinite(factors).all() or (factors < 1.0).any():
        raise CheckpointError(f"the GGUF file's rope_freqs.weight has shape {list(factors.shape)} or impossible values")
    if (factors == 1.0).all():
        return None
    turns = rope_theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim) / (2 * math.pi)  # 1 / wavelength
    factor = float(factors.max())
    candidates = [(4.0, LLAMA3_ORIGINAL_CONTEXT)]
    ramp = (factors > 1.0) & (factors < factor)
    if np.count_nonzero(ramp) >= 2:
        smooth = (1.0 / factors[ramp].astype(np.float64) - 1.0 / factor) / (1.0 - 1.0 / factor)
        slope, intercept = np.polyfit(turns[ramp], smooth, 1)
        if intercept < 0:
            candidates.append((round(1.0 - 1.0 / intercept, 3), round(slope / -intercept)))
    for high, original in candidates:
        found = RopeScaling("llama3", round(factor, 4), 1.0, high, original)
        if np.allclose(compute_llama3_factors(found, turns), factors, rtol=1e-3):
            return found
    raise UnsupportedModelError(
        "the GGUF file scales rotary frequencies by a table (rope_freqs.weight) that is not llama3's rule",
        remedy="use the model's original Hugging Face folder, whose config.json names the rule",
    )


def compute_llama3_factors(scaling: RopeScaling, turns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What each frequency (in turns per position) is divided by under the llama3 rule."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((scaling.original_max_position_embeddings * turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - smooth) / scaling.factor + smooth))


class _MetadataReader:
    """Numbers below one architecture's prefix, with their types checked."""

    def __init__(self, metadata: Mapping[str, object], prefix: str) -> None:
        self.metadata = metadata
        self.prefix = prefix

    def read_int(self, key: str, default: int | None = None) -> int:
        value = self.metadata.get(f"{self.prefix}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(f"the GGUF file's {self.prefix}.{key} is {value!r}; a whole number is needed")
        return value

    def read_float(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(f"{self.prefix}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CheckpointError(f"the GGUF file's {self.prefix}.{key} is {value!r}; a number is needed")
        return float(value)


def round_float32(value: float) -> float:
    """The shortest decimal number that is this float32."""
    return float(str(np.float32(value)))
