"""The paper's study as a method: some input channels of every layer stay in float16, the rest is rounded to nearest.

For analysis only: no runtime has kernels for such layers, so the weights are stored in float16, as what they stand for.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch

from edgeawq.checkpoints.grid import quantize_rtn
from edgeawq.quantize.grid import GridFormat, dequantize_to_tensor

CRITERIA = ("activation", "weight-norm", "random")


def count_channels(share: float, in_features: int) -> int:
    """How many channels a share of a layer's inputs is; at least one, unless the share is 0."""
    return max(1, round(share * in_features)) if share > 0.0 else 0


def choose_channels(
    criterion: str, weight: torch.Tensor, mean_abs: torch.Tensor, share: float, generator: torch.Generator
) -> torch.Tensor:
    """The input channels that make up a share of weight [out_features, in_features], by one of CRITERIA.

    mean_abs [in_features] is the mean size of the activation that the layer reads.
    """
    count = count_channels(share, weight.shape[1])
    if criterion == "random":
        return torch.randperm(weight.shape[1], generator=generator)[:count]
    sizes = mean_abs if criterion == "activation" else weight.norm(dim=0)
    return sizes.topk(count).indices


def seed_layer(seed: int, layer: int, module: str) -> torch.Generator:
    """Random numbers of a layer's own, whatever the order in which threads and processes reach it."""
    # torch's generator takes 32 bits of a seed and drops the rest without a word.
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {layer} {module}".encode()))


def keep_channels(weight: torch.Tensor, form: GridFormat, chosen: torch.Tensor) -> torch.Tensor:
    """Weight [out_features, in_features] rounded to nearest on its grid, the chosen columns in float16 instead."""
    linear = quantize_rtn(weight.float().cpu().numpy(), form.bits, form.group_size, is_symmetric=form.is_symmetric)
    rounded = dequantize_to_tensor(linear, weight.dtype).to(weight.device)
    rounded[:, chosen] = weight[:, chosen].half().to(weight.dtype)
    return rounded


def count_kept_bits(shapes: Mapping[str, tuple[int, int]], bits: Mapping[str, int], share: float) -> int:
    """Bits beyond the grid's that kept channels take, 16 a weight instead of the layer's."""
    return sum(
        rows * count_channels(share, columns) * (16 - bits[module]) for module, (rows, columns) in shapes.items()
    )
