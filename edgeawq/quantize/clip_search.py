"""Clip search: the range of every group of weights, chosen by the error it leaves in the layer's output.

AWQ's search looks at one group at a time and shrinks its range symmetrically. This one moves both ends separately,
and after a first pass like AWQ's it goes over the groups again, each time counting what the other groups of the row
already do to the output: with the Gram matrix H = XᵀX of the inputs, the error of a row is δ H δᵀ, whose part that
depends on group g is δ_g H_gg δ_gᵀ + 2 δ_g (H δᵀ)_g. Errors of groups on correlated inputs then cancel instead of
adding up. It remains a choice of ranges: every weight is still rounded to its nearest grid point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgeawq.quantize.grid import GridFormat, choose_grid
from edgeawq.quantize.parallel import Workers

# Rows worked on at once: large enough for torch's overhead, small enough for the buffers to stay in the L2 cache.
ROWS_PER_TASK = 512


@dataclass(frozen=True)
class ClipPass:
    """One pass over all groups: ranges to try, as factors on (max, min), absolute or added to the best so far."""

    candidates: tuple[tuple[float, float], ...]
    is_relative: bool


@dataclass(frozen=True)
class ClippedGrid:
    """The grid of one linear layer; all [out_features, groups], float32."""

    scales: torch.Tensor
    zeros: torch.Tensor
    high_ratio: torch.Tensor  # chosen range over the group's own, upper end
    low_ratio: torch.Tensor  # lower end

    def round(self, weight: torch.Tensor, form: GridFormat) -> torch.Tensor:
        """The values [out_features, in_features] that a weight has on this grid."""
        steps = weight.view(*self.scales.shape, form.group_size) / self.scales[:, :, None]
        zeros = self.zeros[:, :, None]
        torch.clamp(steps.round_(), -zeros, form.top - zeros, out=steps)
        return steps.mul_(self.scales[:, :, None]).view(weight.shape)


def make_square(values: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """Every pair of values."""
    return tuple((high, low) for high in values for low in values)


NO_CLIP = (ClipPass(((1.0, 1.0),), is_relative=False),)
# Coarse, symmetric and independent first, as AWQ does; then neighbours of the best, both ends apart, with the other
# groups in view and in finer and finer steps. Measured against coarser, finer and longer plans on SmolLM2.
CLIP_PLAN = (
    ClipPass(tuple((ratio, ratio) for ratio in (1.0, 0.9, 0.8, 0.7, 0.6)), is_relative=False),
    *(ClipPass(make_square((-step, 0.0, step)), is_relative=True) for step in (0.1, 0.06, 0.04, 0.02)),
)


def search_clip(
    weight: torch.Tensor,
    gram: torch.Tensor,
    form: GridFormat,
    workers: Workers,
    plan: tuple[ClipPass, ...] = CLIP_PLAN,
) -> ClippedGrid:
    """The best ranges found for weight [out_features, in_features] under gram [in_features, in_features]."""
    tasks = [weight[first : first + ROWS_PER_TASK] for first in range(0, weight.shape[0], ROWS_PER_TASK)]
    parts = workers.run(lambda rows: search_rows(rows, gram, form, plan), tasks)
    return ClippedGrid(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("scales", "zeros", "high_ratio", "low_ratio"))
    )


def search_rows(weight: torch.Tensor, gram: torch.Tensor, form: GridFormat, plan: tuple[ClipPass, ...]) -> ClippedGrid:
    """`search_clip` for some rows of a layer, in one thread."""
    rows, in_features = weight.shape
    group_size = form.group_size
    n_groups = in_features // group_size
    # Rows lie side by side in memory, so that per-row factors are contiguous vectors in every operation.
    groups = weight.t().contiguous().view(n_groups, group_size, rows)
    rounded = torch.empty_like(groups)  # [groups, group_size, rows]
    ratios = weight.new_ones(n_groups, 2, rows)
    scales, zeros = weight.new_empty(n_groups, rows), weight.new_empty(n_groups, rows)
    pull = torch.empty_like(groups)  # H δ, [groups, group_size, rows]
    for number, step in enumerate(plan):
        if number == 1:
            pull = (gram @ (rounded - groups).view(in_features, rows)).view_as(groups)
        for g in range(n_groups):
            columns = slice(g * group_size, (g + 1) * group_size)
            block = gram[columns, columns].contiguous()
            linear_term = None
            if number > 0:
                linear_term = torch.addmm(pull[g], block, rounded[g] - groups[g], alpha=-1.0).mul_(2.0)
            found = search_group(groups[g], block, linear_term, ratios[g], form, step)
            ratios[g], scales[g], zeros[g] = found
            renewed = round_group(groups[g], scales[g], zeros[g], form)
            if number > 0:
                pull.view(in_features, rows).addmm_(gram[:, columns], renewed - rounded[g])
            rounded[g] = renewed
    return ClippedGrid(scales.t().contiguous(), zeros.t().contiguous(), ratios[:, 0].t(), ratios[:, 1].t())


def search_group(
    group: torch.Tensor,
    block: torch.Tensor,
    linear_term: torch.Tensor | None,
    best_ratios: torch.Tensor,
    form: GridFormat,
    step: ClipPass,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ratios [2, rows], scales [rows], zeros [rows]) of the best candidate for group [group_size, rows].

    block is the group's part of the Gram matrix, linear_term the pull of the other groups (None: left out).
    """
    low, high = group.amin(0).clamp_(max=0.0), group.amax(0).clamp_(min=0.0)
    tried = torch.tensor(step.candidates).to(group).unsqueeze(-1)  # [candidates, 2, 1]
    tried = best_ratios + tried if step.is_relative else tried.expand(-1, -1, group.shape[1])
    tried = tried.clamp(min=0.05)  # [candidates, 2, rows]
    scales, zeros = choose_grid(low * tried[:, 1], high * tried[:, 0], form)  # [candidates, rows]
    losses = group.new_empty(len(step.candidates), group.shape[1])
    product = torch.empty_like(group)
    for number in range(len(step.candidates)):
        error = round_group(group, scales[number], zeros[number], form).sub_(group)
        torch.mm(block, error, out=product)
        if linear_term is not None:
            product.add_(linear_term)
        torch.sum(product.mul_(error), 0, out=losses[number])
    best = losses.argmin(0, keepdim=True)  # [1, rows]
    ratios = tried.gather(0, best.unsqueeze(1).expand(-1, 2, -1))[0]
    return ratios, scales.gather(0, best)[0], zeros.gather(0, best)[0]


def round_group(group: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, form: GridFormat) -> torch.Tensor:
    """The values that group [group_size, rows] has on the grids scales, zeros [rows]."""
    steps = (group / scales).round_()
    return torch.clamp(steps, -zeros, form.top - zeros, out=steps).mul_(scales)
