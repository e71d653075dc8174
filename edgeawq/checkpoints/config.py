"""What a decoder looks like, independent of the file format it came from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed for longer contexts (names as in Hugging Face's config.json).

    kind: "linear" | "dynamic" | "llama3" | "yarn"; fields that a kind does not use stay at their defaults.
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    attention_factor: float = 0.0  # yarn; 0 = computed from `factor`
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn


@dataclass(frozen=True)
class Experts:
    """The feed-forward part of a mixture of experts, alike in every layer."""

    count: int
    per_token: int
    intermediate_size: int  # of one expert
    normalizes_weights: bool  # the weights of a token's experts are made to add up to 1
    shared_intermediate_size: int = 0  # of the expert that every token passes; 0: there is none


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a decoder-only transformer. Widths are counts of features, not bytes."""

    model_type: str  # "llama"
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool = False  # q, k and v
    attention_output_bias: bool = True  # o too, where attention_bias is set (llama); False in qwen2
    mlp_bias: bool = False
    experts: Experts | None = None  # None: a dense model
    rope_scaling: RopeScaling | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)  # what a user should know about how the model was read
    extra: dict[str, object] = field(default_factory=dict, compare=False)  # the source's own config, untouched
