"""Folding AWQ's channel scales into the weights around an activation, so that the float model stays the same."""

from __future__ import annotations

import torch

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.quantize.llama import BlockWeights
from edgeawq.quantize.recipe import ScalePair

SMALLEST_NORMAL_F16 = 2.0**-14
LARGEST_F16 = 65504.0


def fold_scales(
    weights: BlockWeights, pair: ScalePair, channel_scales: torch.Tensor, config: ModelConfig
) -> BlockWeights:
    """A copy of the block in which `pair.linears` read an activation divided by `channel_scales` [in_features].

    Their input columns are multiplied; the previous operation's output is divided. Under grouped-query attention the
    scales must be equal for all query heads of a KV head, which `tie_query_heads` sees to.
    """
    folded = dict(weights)
    for module in (*pair.linears, *pair.routers):
        folded[f"{module}.weight"] = weights[f"{module}.weight"] * channel_scales
    divisor = pick_kv_heads(channel_scales, config) if pair.per_kv_head else channel_scales
    name = f"{pair.previous}.weight"
    folded[name] = weights[name] / (divisor if pair.previous_is_norm else divisor[:, None])
    if f"{pair.previous}.bias" in weights:
        folded[f"{pair.previous}.bias"] = weights[f"{pair.previous}.bias"] / divisor
    return folded


def tie_query_heads(channel_scales: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Geometric mean over the query heads that share a KV head, repeated for each; [n_heads * head_dim]."""
    groups = config.n_heads // config.n_kv_heads
    heads = channel_scales.view(config.n_kv_heads, groups, config.head_dim)
    shared = heads.log().mean(1, keepdim=True).exp()
    return shared.expand(-1, groups, -1).reshape(-1)


def pick_kv_heads(channel_scales: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The scales of v_proj's rows from tied scales of o_proj's columns; [n_kv_heads * head_dim]."""
    groups = config.n_heads // config.n_kv_heads
    return channel_scales.view(config.n_kv_heads, groups, config.head_dim)[:, 0].reshape(-1)


def snap_to_float16(channel_scales: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Scales close to those given for which norm / scales is a float16 value, as the checkpoint stores it.

    The rounding of the stored norm thus moves into the linear layers, whose weights are rounded anyway. Channels
    whose norm is zero, or leaves float16's range when divided, keep scale 1.
    """
    stored = (norm.double() / channel_scales.double()).half().double()
    fits = (stored.abs() >= SMALLEST_NORMAL_F16) & (stored.abs() <= LARGEST_F16)
    snapped = norm.double() / torch.where(fits, stored, norm.double())
    return torch.where(fits, snapped, torch.ones_like(snapped)).to(channel_scales.dtype)
