"""Which tensors a decoder of a given configuration has, and their shapes."""

from __future__ import annotations

from collections.abc import Mapping

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.experts import list_feed_forwards, list_routers
from edgeawq.errors import CheckpointError

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


def list_expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the float model by its Hugging Face name; `lm_head.weight` only where it is not tied."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for layer in range(config.n_layers):
        shapes |= list_layer_shapes(config, layer)
    shapes[FINAL_NORM] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    return shapes


def list_linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of every linear layer in the decoder's body, by module name; no routers."""
    return {
        f"model.layers.{layer}.{module}": shape
        for layer in range(config.n_layers)
        for module, shape in list_block_linears(config).items()
    }


def list_block_linears(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of the linear layers of one decoder layer, by their name inside it; no routers."""
    hidden = config.hidden_size
    q_width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    linears = {
        "self_attn.q_proj": (q_width, hidden),
        "self_attn.k_proj": (kv_width, hidden),
        "self_attn.v_proj": (kv_width, hidden),
        "self_attn.o_proj": (hidden, q_width),
    }
    for part in list_feed_forwards(config):
        width = part.intermediate_size
        linears |= {part.gate: (width, hidden), part.up: (width, hidden), part.down: (hidden, width)}
    return linears


def list_layer_shapes(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one decoder layer."""
    hidden = config.hidden_size
    prefix = f"model.layers.{layer}."
    shapes: dict[str, tuple[int, ...]] = {prefix + "input_layernorm.weight": (hidden,)}
    for module, shape in list_block_linears(config).items():
        shapes[f"{prefix}{module}.weight"] = shape
        if has_bias(config, module):
            shapes[f"{prefix}{module}.bias"] = (shape[0],)
    for module, out_features in list_routers(config).items():
        shapes[f"{prefix}{module}.weight"] = (out_features, hidden)
    shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
    return shapes


def has_bias(config: ModelConfig, module: str) -> bool:
    """Whether a layer's linear (such as "self_attn.o_proj") carries a bias."""
    if not module.startswith("self_attn."):
        return config.mlp_bias
    if module == "self_attn.o_proj":
        return config.attention_bias and config.attention_output_bias
    return config.attention_bias


def check_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise CheckpointError where a tensor is missing or has another shape than the configuration asks for."""
    missing = [name for name in expected if name not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{where}: the tensor {missing[0]}{more} is missing ({len(expected)} are needed, {len(found)} are there)",
            remedy="the download may be incomplete, or config.json belongs to another model; get the checkpoint again",
        )
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise CheckpointError(
                f"{where}: the tensor {name} has shape {list(found[name])}, but the configuration wants {list(shape)}",
                remedy="config.json and the weights do not belong together; get the checkpoint again",
            )
