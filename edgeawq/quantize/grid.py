"""The uniform grid in torch: the same rules as `edgeawq.checkpoints.grid`, for many candidate ranges at once."""

from __future__ import annotations

import numpy as np
import torch

from edgeawq.checkpoints.model import QuantizedLinear

SMALLEST_SUBNORMAL_F16 = 2.0**-24
SMALLEST_NORMAL_F16 = 2.0**-14
LARGEST_F16 = 65504.0


def choose_grid(low: torch.Tensor, high: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros of groups that range from `low` ≤ 0 to `high` ≥ 0, any shape; float32, on float16 values.

    scale = float16((high - low) / (2**bits - 1)), zero = round(-low / scale), as the checkpoint will hold them.
    """
    top = 2**bits - 1
    low64 = low.double()
    wanted = (high.double() - low64) / top
    scales16 = wanted.clamp(SMALLEST_SUBNORMAL_F16, LARGEST_F16).half()
    # A subnormal has few digits: rounded down it would no longer span the group, so it goes up instead.
    short = (scales16.float() < SMALLEST_NORMAL_F16) & (scales16.double() < wanted)
    if bool(short.any()):
        scales16 = torch.where(short, torch.nextafter(scales16, torch.ones_like(scales16)), scales16)
    scales16 = torch.where(wanted == 0.0, torch.full_like(scales16, SMALLEST_NORMAL_F16), scales16)
    zeros = (-low64 / scales16.double()).round_().clamp_(0, top)
    return scales16.float(), zeros.float()


def dequantize_to_tensor(linear: QuantizedLinear, dtype: torch.dtype) -> torch.Tensor:
    """The weight [out_features, in_features] that a grid stands for: (q - zero) * scale, exact in float32."""
    out_features, in_features = linear.shape
    groups = torch.from_numpy(linear.q).view(out_features, -1, linear.group_size).float()
    groups -= torch.from_numpy(linear.zeros).float()[:, :, None]
    groups *= torch.from_numpy(linear.scales).float()[:, :, None]
    return groups.view(out_features, in_features).to(dtype)


def round_to_linear(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int, group_size: int
) -> QuantizedLinear:
    """The grid points nearest to weight [out_features, in_features]; scales and zeros are [out_features, groups]."""
    out_features, in_features = weight.shape
    groups = weight.float().view(out_features, -1, group_size) / scales[:, :, None]
    q = groups.round_().add_(zeros[:, :, None]).clamp_(0, 2**bits - 1)
    return QuantizedLinear(
        q=q.to(torch.uint8).view(out_features, in_features).numpy(),
        scales=scales.numpy().astype(np.float16),
        zeros=zeros.numpy().astype(np.uint8),
        bits=bits,
        group_size=group_size,
    )
