"""GPTQ: round a layer column by column, and let the columns that are still to come make up for every error.

With H = XᵀX of the layer's inputs and U the upper Cholesky factor of H⁻¹, the error e of column i, divided by U_ii, is
taken out of the later columns with weights U_i (https://arxiv.org/abs/2210.17323, algorithm 1; here rows of a
transposed weight, so that every operation runs along memory). Afterwards two things that GPTQ leaves on the table:
the scales of all groups of a row are fitted anew to the values that were chosen (least squares under H), and single
values are moved wherever that lowers the row's error, until hardly any moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.errors import QuantizationError
from edgeawq.quantize.grid import LARGEST_F16, SMALLEST_NORMAL_F16, GridFormat, choose_grid, make_linear

LAZY_COLUMNS = 128  # columns whose corrections reach the rest of the matrix in one product
SYSTEM_ELEMENTS = 1 << 24  # of the systems that are solved together
MAX_DAMPING = 10.0  # of the mean diagonal; beyond that nothing of H would be left
RANGE_RATIOS = tuple(1.0 - step / 20 for step in range(10))  # of a group's range, where the grid follows the columns


@dataclass(frozen=True)
class GptqPlan:
    """How GPTQ goes about it; the defaults are the best of those measured."""

    act_order: bool = False  # columns by descending H_ii, on the given grid
    damping: float = 0.01  # of the mean diagonal
    refinements: int = 3  # rounds of fitting scales and moving single values


@dataclass(frozen=True)
class TransposedGrid:
    """A grid with outputs last, as GPTQ works; float32."""

    scales: torch.Tensor  # [groups, out_features]
    zeros: torch.Tensor  # [groups, out_features]


def quantize_gptq(
    weight: torch.Tensor,
    gram: torch.Tensor,
    form: GridFormat,
    plan: GptqPlan,
    grid: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> QuantizedLinear:
    """weight [out_features, in_features] on its grid, with little error under gram [in_features, in_features].

    grid: scales and zeros [out_features, groups] to use as they are; None lets every group's grid be chosen when its
    columns are reached, from what they have become, which needs their usual order.
    """
    if not bool(torch.isfinite(weight).all()) or not bool(torch.isfinite(gram).all()):
        raise QuantizationError(
            "a layer's weights or calibration statistics hold NaN or infinity",
            remedy="the checkpoint is damaged, or its activations overflow; check the float model",
        )
    source = weight.t().contiguous()  # [in_features, out_features]
    if grid is None and plan.act_order:
        grid = choose_plain_grid(source, form)
    chosen = TransposedGrid(*(part.t().contiguous() for part in grid)) if grid is not None else None
    steps, chosen = round_columns(source, gram, form, plan, chosen)
    for _ in range(plan.refinements):
        chosen = fit_scales(source, gram, steps, chosen, form, plan.damping)
        steps = move_values(source, gram, steps, chosen, form, plan.damping)
    return make_linear(steps.t(), chosen.scales.t(), chosen.zeros.t(), form)


def choose_plain_grid(source: torch.Tensor, form: GridFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """The grid of every group's full range; [out_features, groups] of source [in_features, out_features]."""
    groups = source.view(-1, form.group_size, source.shape[1])
    scales, zeros = choose_grid(groups.amin(1).clamp_(max=0.0), groups.amax(1).clamp_(min=0.0), form)
    return scales.t(), zeros.t()


def choose_group_grid(group: torch.Tensor, importance: torch.Tensor, form: GridFormat) -> TransposedGrid:
    """The best of some ranges for group [group_size, out_features], by squared error times importance [group_size]."""
    low, high = group.amin(0).clamp_(max=0.0), group.amax(0).clamp_(min=0.0)
    ratios = torch.tensor(RANGE_RATIOS).to(group)[:, None]
    scales, zeros = choose_grid(low * ratios, high * ratios, form)  # [ratios, out_features]
    losses = []
    for scale, zero in zip(scales, zeros, strict=True):
        steps = torch.clamp((group / scale).round_(), -zero, form.top - zero)
        losses.append((steps.mul_(scale).sub_(group).square_() * importance[:, None]).sum(0))
    best = torch.stack(losses).argmin(0, keepdim=True)
    return TransposedGrid(scales.gather(0, best), zeros.gather(0, best))


def round_columns(
    source: torch.Tensor, gram: torch.Tensor, form: GridFormat, plan: GptqPlan, grid: TransposedGrid | None
) -> tuple[torch.Tensor, TransposedGrid]:
    """GPTQ itself: (q - zero [in_features, out_features], the grid)."""
    width, rows = source.shape
    diagonal = gram.diagonal()
    order = torch.arange(width, device=source.device)
    if plan.act_order:
        order = diagonal.argsort(descending=True, stable=True)
    factor = factor_inverse(gram[order][:, order], plan.damping)
    work = source[order]  # a copy
    steps = torch.empty_like(work)
    groups = (order // form.group_size).cpu().tolist()
    alive = find_alive(source, form)
    parts: list[TransposedGrid] = []
    for first in range(0, width, LAZY_COLUMNS):
        last = min(first + LAZY_COLUMNS, width)
        errors = work.new_empty(last - first, rows)
        for column in range(first, last):
            if grid is None and column % form.group_size == 0:
                # Corrections from this very stretch have not reached the columns beyond it yet.
                group = work[column : column + form.group_size].clone()
                if column + form.group_size > last and column > first:
                    group[last - column :] -= (
                        factor[first:column, last : column + form.group_size].t() @ errors[: column - first]
                    )
                parts.append(choose_group_grid(group, diagonal[column : column + form.group_size], form))
            scale, zero = pick_group(grid, parts, groups[column])
            value = work[column]
            step = torch.clamp((value / scale).round_(), -zero, form.top - zero).mul_(alive[groups[column]])
            steps[column] = step
            error = torch.sub(value, step.mul(scale)).div_(factor[column, column])
            errors[column - first] = error
            if column + 1 < last:
                work[column + 1 : last].addr_(factor[column, column + 1 : last], error, alpha=-1.0)
        if last < width:
            work[last:].addmm_(factor[first:last, last:].t(), errors, alpha=-1.0)
    if grid is None:
        grid = TransposedGrid(torch.cat([part.scales for part in parts]), torch.cat([part.zeros for part in parts]))
    ordered = torch.empty_like(steps)
    ordered[order] = steps
    return ordered, grid


def find_alive(source: torch.Tensor, form: GridFormat) -> torch.Tensor:
    """1 where a group holds anything, 0 where it is all zeros and stays so, [groups, out_features]."""
    return (source.view(-1, form.group_size, source.shape[1]) != 0.0).any(1).to(source.dtype)


def pick_group(
    grid: TransposedGrid | None, parts: list[TransposedGrid], group: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scales, zeros) [out_features] of one group."""
    if grid is not None:
        return grid.scales[group], grid.zeros[group]
    return parts[group].scales[0], parts[group].zeros[0]


def damp(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """gram with damping times its mean diagonal added; inputs that were never seen count like the mean."""
    damped = gram.clone()
    diagonal = damped.diagonal()
    mean = float(diagonal.mean(dtype=torch.float64))
    if mean <= 0.0:
        return torch.eye(len(gram), device=gram.device)
    diagonal[diagonal <= 0.0] = mean
    diagonal += damping * mean
    return damped


def factor_inverse(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor of the damped gram's inverse; damped more where rounding made gram indefinite."""
    while damping <= MAX_DAMPING:
        lower, failed = torch.linalg.cholesky_ex(damp(gram, damping))
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed):
                return upper
        damping *= 10.0
    raise QuantizationError(
        "the statistics of a layer's inputs have no Cholesky factor, even strongly damped",
        remedy="give more calibration text (--calib-tokens)",
    )


def fit_scales(
    source: torch.Tensor,
    gram: torch.Tensor,
    steps: torch.Tensor,
    grid: TransposedGrid,
    form: GridFormat,
    damping: float,
) -> TransposedGrid:
    """The scales that leave the least error for given steps: one small linear system for every row.

    With c_g the steps of group g and zeros elsewhere, the row Σ s_g c_g is nearest to w under H where
    Σ_h (c_g H c_h) s_h = c_g H w. A row whose system is singular, or whose scales would leave float16 or change sign,
    keeps what it has.
    """
    n_groups = source.shape[0] // form.group_size
    damped = damp(gram, damping)
    step = max(1, SYSTEM_ELEMENTS // n_groups**2)
    parts = [
        fit_rows(source[:, rows], damped, steps[:, rows], grid.scales[:, rows], form)
        for rows in (slice(first, first + step) for first in range(0, source.shape[1], step))
    ]
    return TransposedGrid(torch.cat(parts, 1), grid.zeros)


def fit_rows(
    source: torch.Tensor, damped: torch.Tensor, steps: torch.Tensor, scales: torch.Tensor, form: GridFormat
) -> torch.Tensor:
    """`fit_scales` for some output features: their scales [groups, out_features], where they are `scales` now."""
    width, rows = source.shape
    n_groups = width // form.group_size
    grouped = steps.reshape(n_groups, form.group_size, rows)
    right = (grouped * (damped @ source).view_as(grouped)).sum(1).t()  # [rows, groups]
    system = source.new_empty(rows, n_groups, n_groups)
    for group in range(n_groups):
        columns = slice(group * form.group_size, (group + 1) * form.group_size)
        pushed = (damped[:, columns] @ grouped[group]).view_as(grouped)  # H c_g
        system[:, :, group] = (grouped * pushed).sum(1).t()
    # A group of zeros has an empty row and column: its scale is left alone.
    diagonal = system.diagonal(dim1=1, dim2=2)
    empty = diagonal <= 0.0
    old = scales.t()
    ridge = 1e-6 * diagonal.mean(1, keepdim=True) + empty
    diagonal += ridge
    fitted = torch.linalg.solve_ex(system, right + ridge * old)[0]
    usable = ((fitted >= SMALLEST_NORMAL_F16) & (fitted <= LARGEST_F16)).all(1, keepdim=True)
    return torch.where(usable, fitted.half().float(), old).t().contiguous()


def move_values(
    source: torch.Tensor,
    gram: torch.Tensor,
    steps: torch.Tensor,
    grid: TransposedGrid,
    form: GridFormat,
    damping: float,
) -> torch.Tensor:
    """One pass over all columns, each value set to the best one for the others as they are; never gets worse."""
    width, rows = source.shape
    damped = damp(gram, damping)
    scales = grid.scales.repeat_interleave(form.group_size, 0)
    zeros = grid.zeros.repeat_interleave(form.group_size, 0)
    alive = find_alive(source, form)
    values = steps * scales
    pull = damped @ (values - source)  # H δ, [in_features, out_features]
    moved = steps.clone()
    for first in range(0, width, LAZY_COLUMNS):
        last = min(first + LAZY_COLUMNS, width)
        changes = values.new_empty(last - first, rows)
        for column in range(first, last):
            wanted = values[column] - pull[column] / damped[column, column]
            step = torch.clamp((wanted / scales[column]).round_(), -zeros[column], form.top - zeros[column])
            step.mul_(alive[column // form.group_size])
            change = step * scales[column] - values[column]
            moved[column] = step
            changes[column - first] = change
            if column + 1 < last:
                pull[column + 1 : last].addr_(damped[column, column + 1 : last], change)
        if last < width:
            pull[last:].addmm_(damped[last:, first:last], changes)
    return moved
