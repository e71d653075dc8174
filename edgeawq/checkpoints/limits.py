"""Bounds on what a model's configuration may say, checked before anything is allocated."""

from __future__ import annotations

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.errors import CheckpointError

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_EXPERTS = 1 << 12
MAX_VOCABULARY = 1 << 24
MAX_CONTEXT = 1 << 30
MAX_JSON_BYTES = 256 << 20  # the largest tokenizer.json seen has some 35 MB


def check_dimensions(config: ModelConfig, where: str) -> None:
    """Raise CheckpointError for a configuration that no model can have."""
    limits = {
        "hidden_size": (config.hidden_size, MAX_WIDTH),
        "intermediate_size": (config.intermediate_size, MAX_WIDTH),
        "n_layers": (config.n_layers, MAX_LAYERS),
        "n_heads": (config.n_heads, MAX_WIDTH),
        "n_kv_heads": (config.n_kv_heads, MAX_WIDTH),
        "head_dim": (config.head_dim, MAX_WIDTH),
        "vocab_size": (config.vocab_size, MAX_VOCABULARY),
        "max_position_embeddings": (config.max_position_embeddings, MAX_CONTEXT),
    }
    if config.experts is not None:
        limits |= {
            "the number of experts": (config.experts.count, MAX_EXPERTS),
            "the number of experts for a token": (config.experts.per_token, config.experts.count),
            "an expert's intermediate size": (config.experts.intermediate_size, MAX_WIDTH),
            # 0 says that there is none.
            "the shared expert's intermediate size": (max(1, config.experts.shared_intermediate_size), MAX_WIDTH),
        }
    for name, (value, limit) in limits.items():
        if not 1 <= value <= limit:
            raise CheckpointError(f"{where}: {name} is {value:,}; possible is 1 to {limit:,}")
    if config.n_heads % config.n_kv_heads:
        raise CheckpointError(
            f"{where}: {config.n_heads} heads cannot share {config.n_kv_heads} key-value heads evenly"
        )
    if config.head_dim % 2:
        raise CheckpointError(f"{where}: head_dim is {config.head_dim}; rotary positions need an even number")
    if not 0.0 < config.rms_norm_eps < 1.0 or not config.rope_theta > 0.0:
        raise CheckpointError(
            f"{where}: rms_norm_eps {config.rms_norm_eps} or rope_theta {config.rope_theta} is out of range"
        )
    for token_id in (*config.eos_token_ids, *(() if config.bos_token_id is None else (config.bos_token_id,))):
        if not 0 <= token_id < config.vocab_size:
            raise CheckpointError(f"{where}: the special token {token_id} is outside the {config.vocab_size:,} tokens")
