"""The uniform grid in torch: the same rules as `edgeawq.checkpoints.grid`, for many candidate ranges at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgeawq.checkpoints.model import QuantizedLinear

SMALLEST_SUBNORMAL_F16 = 2.0**-24
SMALLEST_NORMAL_F16 = 2.0**-14
LARGEST_F16 = 65504.0


@dataclass(frozen=True)
class GridFormat:
    """What kind of grid a linear layer gets."""

    bits: int
    group_size: int
    is_symmetric: bool = False  # the zero is 2**(bits - 1) in every group

    @property
    def top(self) -> int:
        """The largest value of q."""
        return (1 << self.bits) - 1


def choose_grid(low: torch.Tensor, high: torch.Tensor, form: GridFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros of groups that range from `low` ≤ 0 to `high` ≥ 0, any shape; float32, on float16 values.

    scale = float16((high - low) / (2**bits - 1)), zero = round(-low / scale), as the checkpoint will hold them. A
    symmetric grid ranges from -high to high, whichever end is the farther one.
    """
    top = form.top
    if form.is_symmetric:
        high = torch.maximum(high, -low)
        low = -high
    low64 = low.double()
    wanted = (high.double() - low64) / top
    scales16 = wanted.clamp(SMALLEST_SUBNORMAL_F16, LARGEST_F16).half()
    # A subnormal has few digits: rounded down it would no longer span the group, so it goes up instead.
    short = (scales16.float() < SMALLEST_NORMAL_F16) & (scales16.double() < wanted)
    if bool(short.any()):
        scales16 = torch.where(short, torch.nextafter(scales16, torch.ones_like(scales16)), scales16)
    scales16 = torch.where(wanted == 0.0, torch.full_like(scales16, SMALLEST_NORMAL_F16), scales16)
    if form.is_symmetric:
        return scales16.float(), torch.full_like(low, float(1 << (form.bits - 1)))
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
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, form: GridFormat
) -> QuantizedLinear:
    """The grid points nearest to weight [out_features, in_features]; scales and zeros are [out_features, groups]."""
    groups = weight.float().view(weight.shape[0], -1, form.group_size) / scales[:, :, None]
    return make_linear(groups.round_().view_as(weight), scales, zeros, form)


def make_linear(steps: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, form: GridFormat) -> QuantizedLinear:
    """A layer from steps = q - zero [out_features, in_features], clamped to the grid where they lie beyond it."""
    out_features, in_features = steps.shape
    groups = steps.reshape(out_features, -1, form.group_size) + zeros[:, :, None]
    return QuantizedLinear(
        q=groups.clamp_(0, form.top).to(torch.uint8).view(out_features, in_features).cpu().numpy(),
        scales=scales.contiguous().cpu().numpy().astype(np.float16),
        zeros=zeros.contiguous().cpu().numpy().astype(np.uint8),
        bits=form.bits,
        group_size=form.group_size,
    )
