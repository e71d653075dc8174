"""A small decoder of the Llama family in torch: the float reference of the quantizer and of the runtime's tests.

Blocks are plain functions on a dictionary of weights, so that the quantizer can hold one block at a time, change its
weights, and run it again. Shapes: hidden [batch, positions, hidden_size], q [batch, n_heads, positions, head_dim],
k and v [batch, n_kv_heads, positions, head_dim].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.experts import FeedForward, find_common_feed_forward, list_experts, list_routers
from edgeawq.checkpoints.model import Checkpoint
from edgeawq.checkpoints.rope import compute_rope_tables
from edgeawq.checkpoints.tensor_shapes import list_layer_shapes
from edgeawq.quantize.grid import dequantize_to_tensor
from edgeawq.quantize.recipe import find_recipe

# Weights of one block, by their name inside it: "self_attn.q_proj.weight", "input_layernorm.weight", …
BlockWeights = dict[str, torch.Tensor]

# (features [batch, positions, in_features], weights, module) → [batch, positions, out_features]
LinearFunction = Callable[[torch.Tensor, BlockWeights, str], torch.Tensor]


@dataclass(frozen=True)
class RopeTables:
    """cos and sin, each [positions, head_dim / 2]."""

    cos: torch.Tensor
    sin: torch.Tensor


@dataclass
class KVCache:
    """Keys and values of every layer, preallocated; `position` is how many are filled."""

    keys: list[torch.Tensor]  # per layer [batch, n_kv_heads, capacity, head_dim]
    values: list[torch.Tensor]  # per layer [batch, n_kv_heads, capacity, head_dim]
    position: int = 0

    @staticmethod
    def allocate(
        config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> KVCache:
        """An empty cache for `batch` sequences of at most `capacity` tokens."""
        shape = (batch, config.n_kv_heads, capacity, config.head_dim)
        return KVCache(
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layers)],
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layers)],
        )


def make_rope(
    config: ModelConfig, n_positions: int, dtype: torch.dtype, first: int = 0, device: torch.device | None = None
) -> RopeTables:
    """Rotary tables for positions first … first + n_positions - 1."""
    cos, sin = compute_rope_tables(config, first, n_positions)
    # Converted before they are moved: not every device has float64.
    return RopeTables(*(torch.from_numpy(table).to(dtype).to(device or "cpu") for table in (cos, sin)))


def normalize(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last axis."""
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps) * weight


def apply_linear(features: torch.Tensor, weights: BlockWeights, module: str) -> torch.Tensor:
    """features @ weightᵀ + bias, where the module has one."""
    return F.linear(features, weights[f"{module}.weight"], weights.get(f"{module}.bias"))


def rotate(heads: torch.Tensor, rope: RopeTables) -> torch.Tensor:
    """Rotary embedding of [batch, heads, positions, head_dim]; dimension d is paired with d + head_dim / 2."""
    low, high = heads.chunk(2, dim=-1)
    return torch.cat((low * rope.cos - high * rope.sin, high * rope.cos + low * rope.sin), dim=-1)


def split_heads(features: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[batch, positions, heads * head_dim] → [batch, heads, positions, head_dim]"""
    batch, positions, _ = features.shape
    return features.view(batch, positions, -1, head_dim).transpose(1, 2)


def run_attention(
    normed: torch.Tensor,
    weights: BlockWeights,
    config: ModelConfig,
    rope: RopeTables,
    *,
    linear: LinearFunction = apply_linear,
    cache: KVCache | None = None,
    layer: int = 0,
) -> torch.Tensor:
    """Causal self-attention of [batch, positions, hidden_size], input after the norm, output before the residual."""
    q = rotate(split_heads(linear(normed, weights, "self_attn.q_proj"), config.head_dim), rope)
    k = rotate(split_heads(linear(normed, weights, "self_attn.k_proj"), config.head_dim), rope)
    v = split_heads(linear(normed, weights, "self_attn.v_proj"), config.head_dim)
    mixed = attend(q, k, v, cache, layer).transpose(1, 2).reshape(*normed.shape[:2], -1)
    return linear(mixed, weights, "self_attn.o_proj")


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: KVCache | None = None, layer: int = 0
) -> torch.Tensor:
    """Softmax attention with grouped keys and values; [batch, n_heads, positions, head_dim]."""
    is_causal = True
    if cache is not None:
        end = cache.position + k.shape[2]
        cache.keys[layer][:, :, cache.position : end] = k
        cache.values[layer][:, :, cache.position : end] = v
        is_causal = cache.position == 0
        if not is_causal and q.shape[2] != 1:
            raise ValueError("after the first call a cache takes one token at a time")
        k, v = cache.keys[layer][:, :, :end], cache.values[layer][:, :, :end]
    groups = q.shape[1] // k.shape[1]
    if q.shape[2] == 1 and groups > 1:
        # One new token: the query heads of a group are rows of one product, so nothing has to be repeated.
        batch, n_heads, _, head_dim = q.shape
        grouped = q.view(batch, n_heads // groups, groups, head_dim)
        return F.scaled_dot_product_attention(grouped, k, v).reshape(batch, n_heads, 1, head_dim)
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)


def run_mlp(
    normed: torch.Tensor, weights: BlockWeights, part: FeedForward, *, linear: LinearFunction = apply_linear
) -> torch.Tensor:
    """One SwiGLU part of [batch, positions, hidden_size], input after the norm, output before the residual."""
    gate = F.silu(linear(normed, weights, part.gate))
    return linear(gate * linear(normed, weights, part.up), weights, part.down)


def run_feed_forward(
    normed: torch.Tensor, weights: BlockWeights, config: ModelConfig, *, linear: LinearFunction = apply_linear
) -> torch.Tensor:
    """The whole feed-forward of [batch, positions, hidden_size]: what every token passes, and its chosen experts.

    An expert's layers get the tokens that are sent to it, as [1, tokens, hidden_size]; there may be none.
    """
    common = find_common_feed_forward(config)
    if config.experts is None:
        assert common is not None
        return run_mlp(normed, weights, common, linear=linear)
    router, *shared_router = list_routers(config)
    tokens = normed.flatten(0, 1)[None]  # [1, tokens, hidden_size]
    shares, chosen = linear(tokens, weights, router)[0].softmax(-1).topk(config.experts.per_token)  # [tokens, chosen]
    if config.experts.normalizes_weights:
        shares = shares / shares.sum(-1, keepdim=True)
    output = torch.zeros_like(tokens[0])
    for number, part in enumerate(list_experts(config)):
        rows, slots = (chosen == number).nonzero(as_tuple=True)
        found = run_mlp(tokens[:, rows], weights, part, linear=linear)[0]
        output = output.index_add(0, rows, found * shares[rows, slots, None])
    if common is not None:
        share = linear(tokens, weights, shared_router[0])[0].sigmoid()  # [tokens, 1]
        output = output + share * run_mlp(tokens, weights, common, linear=linear)[0]
    return output.view_as(normed)


def run_block(
    hidden: torch.Tensor,
    weights: BlockWeights,
    config: ModelConfig,
    rope: RopeTables,
    *,
    linear: LinearFunction = apply_linear,
    cache: KVCache | None = None,
    layer: int = 0,
) -> torch.Tensor:
    """One decoder block, residuals included; [batch, positions, hidden_size] in and out.

    `linear` computes every linear layer: a caller that wants to see or change what goes through them passes its own.
    """
    normed = normalize(hidden, weights["input_layernorm.weight"], config.rms_norm_eps)
    hidden = hidden + run_attention(normed, weights, config, rope, linear=linear, cache=cache, layer=layer)
    normed = normalize(hidden, weights["post_attention_layernorm.weight"], config.rms_norm_eps)
    return hidden + run_feed_forward(normed, weights, config, linear=linear)


def read_weight(
    checkpoint: Checkpoint, module: str, dtype: torch.dtype, device: torch.device | None = None
) -> torch.Tensor:
    """The weight of `module`, dequantized where the checkpoint holds it on a grid."""
    linear = checkpoint.quantized_linear(module)
    if linear is not None:
        return dequantize_to_tensor(linear, dtype).to(device or "cpu")
    return torch.from_numpy(checkpoint.tensor(f"{module}.weight")).to(dtype).to(device or "cpu")


def read_block(
    checkpoint: Checkpoint, layer: int, dtype: torch.dtype, device: torch.device | None = None
) -> BlockWeights:
    """All weights of one block, biases included where the checkpoint has them."""
    prefix = f"model.layers.{layer}."
    weights: BlockWeights = {}
    for name in list_layer_shapes(checkpoint.config, layer):
        module, _, kind = name.rpartition(".")
        if kind == "weight":
            tensor = read_weight(checkpoint, module, dtype, device)
        else:
            tensor = torch.from_numpy(checkpoint.tensor(name)).to(dtype).to(device or "cpu")
        weights[name.removeprefix(prefix)] = tensor
    return weights


class TorchDecoder:
    """A whole model in memory: token ids [batch, positions] → logits [batch, positions, vocab_size]."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> None:
        find_recipe(checkpoint.config)  # refuses a family that is computed differently
        self.config = checkpoint.config
        self.dtype = dtype
        self.device = device or torch.device("cpu")
        self.embedding = read_weight(checkpoint, "model.embed_tokens", dtype, device)  # [vocab_size, hidden_size]
        self.blocks = [read_block(checkpoint, layer, dtype, device) for layer in range(self.config.n_layers)]
        self.final_norm = read_weight(checkpoint, "model.norm", dtype, device)  # [hidden_size]
        tied = self.config.tie_word_embeddings
        # [vocab_size, hidden_size]
        self.head = self.embedding if tied else read_weight(checkpoint, "lm_head", dtype, device)

    def run_hidden(self, token_ids: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Hidden states after the final norm, [batch, positions, hidden_size]; appends to `cache` when there is one."""
        first = cache.position if cache is not None else 0
        rope = make_rope(self.config, token_ids.shape[1], self.dtype, first, self.device)
        hidden = F.embedding(token_ids, self.embedding)
        for layer, weights in enumerate(self.blocks):
            hidden = run_block(hidden, weights, self.config, rope, cache=cache, layer=layer)
        if cache is not None:
            cache.position += token_ids.shape[1]
        return normalize(hidden, self.final_norm, self.config.rms_norm_eps)

    def __call__(self, token_ids: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Logits [batch, positions, vocab_size] of token_ids [batch, positions]."""
        with torch.no_grad():
            return F.linear(self.run_hidden(token_ids, cache), self.head)


def load_decoder(
    checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> TorchDecoder:
    """Read a float or AWQ checkpoint (dequantized) into memory as a callable: token ids [batch, seq] → logits.

    Raises UnsupportedModelError for a family other than Llama.
    """
    return TorchDecoder(checkpoint, dtype, device)
