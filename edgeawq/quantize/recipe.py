"""Which linear layers of a model family share an input scale, and where that scale is folded: data, not code."""

from __future__ import annotations

from dataclasses import dataclass

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.errors import UnsupportedModelError


@dataclass(frozen=True)
class ScalePair:
    """Linear layers that read one activation, and the operation before it that takes up the inverse scale."""

    name: str  # of the activation, for reports
    previous: str  # module inside the block whose output is divided
    previous_is_norm: bool  # True: its weight vector; False: the rows of its matrix
    linears: tuple[str, ...]  # modules inside the block whose input columns are multiplied
    per_kv_head: bool = False  # the previous rows serve several query heads (GQA): one scale for all of them
    weighs_tokens_alike: bool = False  # a token matters about as much to each of the layers: one Gram matrix does


LLAMA_PAIRS = (
    ScalePair("qkv", "input_layernorm", True, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ScalePair("o", "self_attn.v_proj", False, ("self_attn.o_proj",), per_kv_head=True),
    ScalePair("gate_up", "post_attention_layernorm", True, ("mlp.gate_proj", "mlp.up_proj"), weighs_tokens_alike=True),
    ScalePair("down", "mlp.up_proj", False, ("mlp.down_proj",)),
)

# Mistral and Qwen2 are the same graph as Llama; they differ in biases and constants only.
RECIPES = {"llama": LLAMA_PAIRS, "mistral": LLAMA_PAIRS, "qwen2": LLAMA_PAIRS}


def find_recipe(config: ModelConfig) -> tuple[ScalePair, ...]:
    """The scale pairs of a model family; raises UnsupportedModelError for one that is not known."""
    recipe = RECIPES.get(config.model_type)
    if recipe is None:
        raise UnsupportedModelError(
            f"model type {config.model_type!r} cannot be quantized (known: {', '.join(sorted(RECIPES))})",
            remedy="use a model of the Llama family",
        )
    return recipe
