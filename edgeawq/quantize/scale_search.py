"""Scale search: which channel scales, folded into the operation before, leave the least error in the layers' outputs.

Candidates are s = x̄ᵃ / w̄ᵇ with x̄ the mean |activation| of a channel and w̄ the mean |weight| over the group's largest
(b = 0: AWQ's plain search; b = 1 - a: AutoAWQ's "duo scaling"; a = b = 0: identity, so that plain rounding is always
among them). All are compared by the error of rounding alone, which is cheap. Clipping changes the picture (it does part
of what scales do), so the best few and their neighbours are then compared with a small clip search in the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from edgeawq.quantize.clip_search import make_square
from edgeawq.quantize.grid import GridFormat, choose_grid
from edgeawq.quantize.parallel import Workers

Exponents = tuple[float, float]  # of x̄ and of 1 / w̄

IDENTITY: Exponents = (0.0, 0.0)
STEPS = tuple(step / 10 for step in range(11))
PLAIN = tuple((r, 0.0) for r in STEPS)
DUO = tuple((r, round(1.0 - r, 1)) for r in STEPS)
# Rows are alike enough for a sample of them to rank scales: on SmolLM2 more rows changed the final error by < 1 %.
SAMPLED_ROWS = 64
N_STARTS = 4
MIN_DISTANCE = 0.25  # between starts, in exponents
REFINEMENT_STEPS = (0.1, 0.05)
NEIGHBOURS = ((-1, 0), (1, 0), (0, 1), (0, -1), (1, 1), (-1, -1))
NO_CLIP = ((1.0, 1.0),)
CLIP_RATIOS = make_square((1.0, 0.85, 0.7))  # of (max, min)
# Channels that hardly ever see a value would get scales that overflow float16.
MIN_ACTIVATION = 1e-5  # of the largest channel
SCALE_RANGE = 1e3  # largest scale over the geometric middle, and that over the smallest


@dataclass(frozen=True)
class LayerProblem:
    """A linear layer and how errors in it count: the error of a row δ is row_weight · δ gram δᵀ."""

    weight: torch.Tensor  # [out_features, in_features]
    gram: torch.Tensor  # [in_features, in_features]
    row_weights: torch.Tensor  # [out_features]
    form: GridFormat


@dataclass(frozen=True)
class ScaleChoice:
    """The scales found, and how they were made."""

    exponents: Exponents
    channel_scales: torch.Tensor  # [in_features]


def search_scales(
    problems: tuple[LayerProblem, ...],
    mean_abs: torch.Tensor,
    tie: Callable[[torch.Tensor], torch.Tensor],
    workers: Workers,
) -> ScaleChoice:
    """The best scales for layers that read the same activation, whose mean |x| is mean_abs [in_features].

    `tie` makes scales equal where they have to be (query heads of one KV head); it keeps those that are.
    """
    mean_weight = measure_mean_weight(torch.cat([problem.weight for problem in problems]), problems[0].form.group_size)

    def make(exponents: Exponents) -> torch.Tensor:
        return make_scales(exponents, mean_abs, mean_weight, tie)

    sampled = sample_rows(problems, SAMPLED_ROWS)

    def measure_rounded(exponents: Exponents) -> float:
        return measure_loss(sampled, make(exponents), NO_CLIP)

    def measure_clipped(exponents: Exponents) -> float:
        return measure_loss(sampled, make(exponents), CLIP_RATIOS)

    ranked = rank((IDENTITY, *PLAIN, *DUO), measure_rounded, workers)
    losses = rank(pick_starts(ranked), measure_clipped, workers)
    for step in REFINEMENT_STEPS:
        x, w = min(losses, key=losses.__getitem__)
        near = [(round(x + step * dx, 4), round(w + step * dw, 4)) for dx, dw in NEIGHBOURS]
        new = [exponents for exponents in near if exponents not in losses]
        losses |= rank(new, measure_clipped, workers)
    best = min(losses, key=losses.__getitem__)
    return ScaleChoice(best, make(best))


def rank(
    candidates: Iterable[Exponents], measure: Callable[[Exponents], float], workers: Workers
) -> dict[Exponents, float]:
    """The loss of every candidate."""
    unique = list(dict.fromkeys(candidates))
    return dict(zip(unique, workers.run(measure, unique), strict=True))


def pick_starts(ranked: dict[Exponents, float]) -> list[Exponents]:
    """Identity, the best candidate, and the next best that differ enough from those taken."""
    starts = [IDENTITY]
    for candidate in sorted(ranked, key=ranked.__getitem__):
        far = all(abs(candidate[0] - x) + abs(candidate[1] - w) >= MIN_DISTANCE for x, w in starts[1:])
        if candidate != IDENTITY and far:
            starts.append(candidate)
        if len(starts) > N_STARTS:
            break
    return starts


def sample_rows(problems: tuple[LayerProblem, ...], n_rows: int) -> tuple[LayerProblem, ...]:
    """Every k-th row of each layer, at least n_rows where there are as many, weighted for those left out."""
    sampled = []
    for problem in problems:
        stride = max(1, problem.weight.shape[0] // n_rows)
        rows = slice(None, None, stride)
        sampled.append(
            LayerProblem(
                problem.weight[rows].contiguous(), problem.gram, problem.row_weights[rows] * stride, problem.form
            )
        )
    return tuple(sampled)


def measure_mean_weight(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Mean over rows of |weight| over the largest of its group; [in_features]."""
    groups = weight.abs().view(weight.shape[0], -1, group_size)
    return (groups / groups.amax(-1, keepdim=True).clamp_(min=1e-20)).view_as(weight).mean(0)


def make_scales(
    exponents: Exponents,
    mean_abs: torch.Tensor,
    mean_weight: torch.Tensor,
    tie: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """s = x̄ᵃ / w̄ᵇ, centred so that max · min = 1, and bounded; all ones for identity."""
    if exponents == IDENTITY:
        return torch.ones_like(mean_abs)
    activation = mean_abs.clamp(min=float(mean_abs.max()) * MIN_ACTIVATION).clamp_(min=1e-20)
    logs = exponents[0] * activation.log() - exponents[1] * (mean_weight + 1e-4).log()
    scales = tie(logs.exp_())
    scales = scales / (scales.max() * scales.min()).sqrt()
    return scales.clamp_(1.0 / SCALE_RANGE, SCALE_RANGE)


def measure_loss(
    problems: tuple[LayerProblem, ...],
    channel_scales: torch.Tensor,
    ratios: tuple[tuple[float, float], ...],
) -> float:
    """The layers' output error where weights · scales are rounded, each group to the best of the ranges in `ratios`.

    The best is judged group by group, without the others in view: a stand-in for the clip search that is to come.
    """
    total = 0.0
    for problem in problems:
        rows, in_features = problem.weight.shape
        form = problem.form
        weight = (problem.weight * channel_scales).t().contiguous()  # [in_features, rows]
        groups = weight.view(-1, form.group_size, rows)
        low, high = groups.amin(1, keepdim=True).clamp_(max=0.0), groups.amax(1, keepdim=True).clamp_(min=0.0)
        error, least = torch.empty_like(groups), None
        blocks = pick_diagonal_blocks(problem.gram, channel_scales, form.group_size) if len(ratios) > 1 else None
        for high_ratio, low_ratio in ratios:
            scales, zeros = choose_grid(low * low_ratio, high * high_ratio, form)
            steps = (groups / scales).round_()
            tried = torch.clamp(steps, -zeros, form.top - zeros, out=steps).mul_(scales).sub_(groups)
            if blocks is None:
                error = tried
                continue
            loss = torch.bmm(blocks, tried).mul_(tried).sum(1, keepdim=True)  # [groups, 1, rows]
            is_better = loss < least if least is not None else torch.ones_like(loss, dtype=torch.bool)
            error = torch.where(is_better, tried, error)
            least = torch.where(is_better, loss, least) if least is not None else loss
        unscaled = error.view(in_features, rows).div(channel_scales[:, None])
        per_row = (problem.gram @ unscaled).mul_(unscaled).sum(0)
        total += float((per_row * problem.row_weights).sum(dtype=torch.float64))
    return total


def pick_diagonal_blocks(gram: torch.Tensor, channel_scales: torch.Tensor, group_size: int) -> torch.Tensor:
    """The groups' own parts of the Gram matrix of x / channel_scales; [groups, group_size, group_size]."""
    n_groups = len(channel_scales) // group_size
    blocks = gram.view(n_groups, group_size, n_groups, group_size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    inverse = (1.0 / channel_scales).view(n_groups, group_size)
    return blocks * inverse[:, :, None] * inverse[:, None, :]
