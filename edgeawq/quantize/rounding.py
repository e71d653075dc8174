"""Learned rounding: which way every weight of a block is rounded, and the step of every group, learned together.

AWQ and GPTQ decide layer by layer. Here the whole block is run with its rounded weights, and the error of its output
says in which direction each weight should have been rounded (SignRound, https://arxiv.org/abs/2309.05516): a weight w
of a group with step s becomes s · clamp(round(w / s + v)), and v and log s follow the sign of their gradient, as if
rounding were not there, in steps that shrink to nothing. The grid stays uniform and the zeros stay as they were found.

The error of a token counts relative to its size in the output, because the next block normalizes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.quantize.activations import Activations
from edgeawq.quantize.grid import LARGEST_F16, SMALLEST_NORMAL_F16
from edgeawq.quantize.llama import BlockWeights, RopeTables, run_block
from edgeawq.quantize.parallel import Workers

# Weights updated together: small enough for a task's buffers to stay in the L2 cache.
TASK_WEIGHTS = 1 << 16
SMALLEST_SIZE = 1e-12  # of a token's mean square
MAX_OFFSET = 1.0  # of v, in steps of the grid


@dataclass(frozen=True)
class RoundingPlan:
    """How long and how boldly to learn."""

    steps: int = 100
    sequences: int = 2  # in one step, drawn anew
    offset_rate: float = 0.0  # of v in the first step; 0: 1 / steps
    scale_rate: float = 0.0  # of log s in the first step; 0: 0.5 / steps


@dataclass(frozen=True)
class LearnedLinear:
    """One linear layer while it is learned; rows are output features."""

    weight: torch.Tensor  # [out_features, groups, group_size] what is rounded
    offset: torch.Tensor  # [out_features, groups, group_size] v, in steps
    first_scales: torch.Tensor  # [out_features, groups, 1]
    log_scales: torch.Tensor  # [out_features, groups, 1] log(s / first_scales)
    zeros: torch.Tensor  # [out_features, groups, 1]
    alive: torch.Tensor  # [out_features, groups, 1] 0 where a group is all zeros, and stays so
    bits: int
    rounded: torch.Tensor  # [out_features, in_features] what the weight is rounded to; a leaf that wants gradients

    def slices(self) -> Iterator[slice]:
        """Rows that are worked on together."""
        rows, in_features = self.rounded.shape
        step = max(1, TASK_WEIGHTS // in_features)
        return (slice(first, first + step) for first in range(0, rows, step))


def prepare_linear(weight: torch.Tensor, start: QuantizedLinear) -> LearnedLinear:
    """A layer that starts where `start` rounds to: v is the least offset that gives its values."""
    out_features, in_features = weight.shape
    groups = weight.view(out_features, -1, start.group_size)
    scales = torch.from_numpy(start.scales).to(weight.device).float()[:, :, None]
    zeros = torch.from_numpy(start.zeros).to(weight.device).float()[:, :, None]
    steps = groups / scales
    wanted = torch.from_numpy(start.q).to(weight.device).float().view_as(groups) - zeros
    # At the ends of the grid a weight may lie beyond; it is clamped there without help.
    low = torch.where(wanted <= -zeros, -torch.inf, wanted - 0.499)
    high = torch.where(wanted >= 2**start.bits - 1 - zeros, torch.inf, wanted + 0.499)
    offset = torch.maximum(torch.minimum(steps, high), low) - steps
    rounded = (wanted * scales).view(out_features, in_features)
    alive = (groups != 0.0).any(-1, keepdim=True).float()
    return LearnedLinear(
        groups, offset, scales, torch.zeros_like(scales), zeros, alive, start.bits, rounded.requires_grad_()
    )


def read_scales(log_scales: torch.Tensor, first_scales: torch.Tensor) -> torch.Tensor:
    """The steps as the checkpoint will hold them, in float16's values."""
    return (first_scales * log_scales.exp()).clamp_(SMALLEST_NORMAL_F16, LARGEST_F16).half().float()


def round_groups(layer: LearnedLinear, rows: slice, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(w / s + v rounded, the same inside the grid) of some rows; in steps, counted from the zero."""
    steps = (layer.weight[rows] / scales).add_(layer.offset[rows]).round_()
    zeros = layer.zeros[rows]
    return steps, torch.clamp(steps, -zeros, 2**layer.bits - 1 - zeros)


def step_rows(layer: LearnedLinear, rows: slice, gradient: torch.Tensor, offset_rate: float, scale_rate: float) -> None:
    """Move v and log s of some rows against the gradient of the rounded weight, and round anew."""
    weight, offset = layer.weight[rows], layer.offset[rows]
    gradient = gradient.view_as(weight)
    first, logs = layer.first_scales[rows], layer.log_scales[rows]
    scales = read_scales(logs, first)
    steps, inside = round_groups(layer, rows, scales)
    is_free = steps.eq_(inside).mul_(layer.alive[rows])  # 1 where the grid's ends do not hold the weight
    pull = torch.addcdiv(inside, weight * is_free, scales, value=-1.0).mul_(gradient).sum(-1, keepdim=True)
    logs.sub_(pull.sign_(), alpha=scale_rate)
    offset.sub_(gradient.sign().mul_(is_free), alpha=offset_rate).clamp_(-MAX_OFFSET, MAX_OFFSET)
    scales = read_scales(logs, first)
    _, inside = round_groups(layer, rows, scales)
    layer.rounded.data[rows] = inside.mul_(scales).flatten(1)


def finish_linear(layer: LearnedLinear) -> QuantizedLinear:
    """The layer on its learned grid."""
    scales = read_scales(layer.log_scales, layer.first_scales)
    _, inside = round_groups(layer, slice(None), scales)
    q = inside.add_(layer.zeros).to(torch.uint8).flatten(1)
    return QuantizedLinear(
        q=q.cpu().numpy(),
        scales=scales[:, :, 0].cpu().numpy().astype(np.float16),
        zeros=layer.zeros[:, :, 0].cpu().numpy().astype(np.uint8),
        bits=layer.bits,
        group_size=layer.weight.shape[2],
    )


def learn_rounding(
    weights: BlockWeights,
    start: dict[str, QuantizedLinear],
    hidden: Activations,
    expected: Activations,
    config: ModelConfig,
    rope: RopeTables,
    plan: RoundingPlan,
    seed: int,
    workers: Workers,
) -> dict[str, QuantizedLinear]:
    """The block's linear layers, rounded so that hidden leads to expected, both [sequences, seqlen, hidden_size].

    `weights` are the float block's (scales folded in; norms and biases as they will be stored), `start` the same block
    on its first grid. The same seed gives the same result, whatever the number of threads.
    """
    prepared = workers.run(lambda module: prepare_linear(weights[f"{module}.weight"], start[module]), start)
    layers = dict(zip(start, prepared, strict=True))
    rounded = dict(weights) | {f"{module}.weight": layer.rounded for module, layer in layers.items()}
    leaves = [layer.rounded for layer in layers.values()]
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []

    def differentiate(sequence: int) -> tuple[torch.Tensor, ...]:
        one = slice(sequence, sequence + 1)
        source, wanted = hidden[one].to(workers.device), expected[one].to(workers.device)
        inverse = wanted.square().mean(-1, keepdim=True).clamp_(min=SMALLEST_SIZE).reciprocal_()  # [1, seqlen, 1]
        with torch.enable_grad():
            error = run_block(source, rounded, config, rope) - wanted
            loss = (error.square() * inverse).mean()
            gradients: tuple[torch.Tensor, ...] = torch.autograd.grad(loss, leaves)
            return gradients

    pieces = [(number, rows) for number, layer in enumerate(layers.values()) for rows in layer.slices()]
    by_number = list(layers.values())
    for step in range(plan.steps):
        while len(order) < plan.sequences:
            order += torch.randperm(len(hidden), generator=generator).tolist()
        batch, order = order[: plan.sequences], order[plan.sequences :]
        parts = workers.run(differentiate, batch)
        left = 1.0 - step / plan.steps
        offset_rate = left * (plan.offset_rate or 1.0 / plan.steps)
        scale_rate = left * (plan.scale_rate or 0.5 / plan.steps)

        def update(piece: tuple[int, slice], parts: list[tuple[torch.Tensor, ...]] = parts) -> None:
            number, rows = piece
            gradient = parts[0][number][rows]
            for part in parts[1:]:
                gradient = gradient + part[number][rows]
            step_rows(by_number[number], rows, gradient, offset_rate, scale_rate)  # noqa: B023

        workers.run(update, pieces)
    return dict(zip(layers, workers.run(finish_linear, layers.values()), strict=True))
