from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeawq.checkpoints.grid import quantize_rtn
from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.errors import QuantizationError
from edgeawq.quantize import gptq
from edgeawq.quantize.gptq import (
    LAZY_COLUMNS,
    GptqPlan,
    TransposedGrid,
    choose_group_grid,
    choose_plain_grid,
    damp,
    fit_scales,
    move_values,
    quantize_gptq,
    round_columns,
)
from edgeawq.quantize.grid import GridFormat, dequantize_to_tensor
from tests.quantize.runs import is_same_grid

ROWS, WIDTH = 24, 320


def make_layer(seed: int, rows: int = ROWS, width: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer whose inputs are correlated and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5 + torch.eye(width)
    features = torch.randn(3 * width, width, generator=generator) @ mixing
    features *= torch.rand(width, generator=generator) * 3.0
    return torch.randn(rows, width, generator=generator), features.T @ features


def measure(weight: torch.Tensor, linear: QuantizedLinear, gram: torch.Tensor) -> torch.Tensor:
    """The error of every row."""
    delta = (dequantize_to_tensor(linear, torch.float32) - weight).double()
    return ((delta @ gram.double()) * delta).sum(1)


def run_plainly(
    source: torch.Tensor, gram: torch.Tensor, form: GridFormat, plan: GptqPlan, grid: TransposedGrid | None
) -> tuple[torch.Tensor, TransposedGrid]:
    """GPTQ by the book, in float64: after every column the inverse of what is left is computed anew."""
    width = len(source)
    diagonal = gram.diagonal()
    order = diagonal.argsort(descending=True, stable=True) if plan.act_order else torch.arange(width)
    hessian = damp(gram, plan.damping).double()[order][:, order]
    work, steps = source.double()[order], torch.empty_like(source)
    scales, zeros = [], []
    for column in range(width):
        inverse = torch.linalg.inv(hessian[column:, column:])
        group = int(order[column]) // form.group_size
        if grid is None and column % form.group_size == 0:
            stretch = slice(column, column + form.group_size)
            found = choose_group_grid(work[stretch].float(), diagonal[stretch], form)
            scales.append(found.scales[0])
            zeros.append(found.zeros[0])
        scale, zero = (scales[group], zeros[group]) if grid is None else (grid.scales[group], grid.zeros[group])
        step = torch.clamp((work[column].float() / scale).round(), -zero, form.top - zero)
        steps[order[column]] = step
        error = (work[column] - step * scale) / inverse[0, 0]
        work[column:] -= inverse[0][:, None] * error
    return steps, grid or TransposedGrid(torch.stack(scales), torch.stack(zeros))


@pytest.mark.parametrize("group_size", [32, 64, 160, WIDTH])
@pytest.mark.parametrize(("act_order", "is_static"), [(False, False), (False, True), (True, True)])
def test_columns_are_rounded_as_the_paper_says(group_size: int, act_order: bool, is_static: bool) -> None:
    """Groups end inside and beyond the stretches in which corrections are held back."""
    assert WIDTH > 2 * LAZY_COLUMNS
    weight, gram = make_layer(group_size)
    form, plan = GridFormat(3, group_size), GptqPlan(act_order, refinements=0)
    source = weight.t().contiguous()
    grid = TransposedGrid(*(part.t() for part in choose_plain_grid(source, form))) if is_static else None
    steps, used = round_columns(source, gram, form, plan, grid)
    wanted, wanted_grid = run_plainly(source, gram, form, plan, grid)
    # float32 may round a value in the middle between two points to the other side, after which a row differs.
    same = (steps == wanted).all(0)
    assert float(same.double().mean()) > 0.8
    assert torch.equal(used.scales[:, same], wanted_grid.scales[:, same])
    assert torch.equal(used.zeros[:, same], wanted_grid.zeros[:, same])


def test_independent_inputs_are_rounded_to_nearest() -> None:
    weight, _ = make_layer(1)
    form = GridFormat(4, 64)
    plan = GptqPlan(act_order=True, refinements=0)
    found = quantize_gptq(weight, torch.diag(torch.rand(WIDTH) + 0.5), form, plan)
    assert is_same_grid(found, quantize_rtn(weight.numpy(), 4, 64))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("is_symmetric", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
def test_the_error_is_well_below_rounding_to_nearest(bits: int, is_symmetric: bool, act_order: bool) -> None:
    weight, gram = make_layer(bits)
    form = GridFormat(bits, 64, is_symmetric)
    found = quantize_gptq(weight, gram, form, GptqPlan(act_order))
    plain = quantize_rtn(weight.numpy(), bits, 64, is_symmetric=is_symmetric)
    assert float(measure(weight, found, gram).sum()) < 0.7 * float(measure(weight, plain, gram).sum())
    assert (found.bits, found.group_size, found.shape) == (bits, 64, (ROWS, WIDTH))
    assert int(found.q.max()) <= form.top
    if is_symmetric:
        assert (found.zeros == 1 << (bits - 1)).all()


def test_every_refinement_lowers_the_damped_error() -> None:
    weight, gram = make_layer(5)
    form, source = GridFormat(2, 64), weight.t().contiguous()
    steps, grid = round_columns(source, gram, form, GptqPlan(), None)
    damped = damp(gram, 0.01).double()

    def rate(steps: torch.Tensor, grid: TransposedGrid) -> torch.Tensor:
        delta = (steps * grid.scales.repeat_interleave(64, 0) - source).double()
        return ((damped @ delta) * delta).sum(0)

    losses = [rate(steps, grid)]
    for _ in range(3):
        grid = fit_scales(source, gram, steps, grid, form, 0.01)
        losses.append(rate(steps, grid))
        steps = move_values(source, gram, steps, grid, form, 0.01)
        losses.append(rate(steps, grid))
    for number, (before, after) in enumerate(zip(losses, losses[1:], strict=False)):
        # A fitted scale is rounded to float16, which costs a little.
        assert bool((after <= before * (1 + 2e-3)).all()), number
    assert float(losses[-1].sum()) < 0.95 * float(losses[0].sum())
    assert torch.equal(grid.scales, grid.scales.half().float())


def test_rows_are_fitted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = make_layer(9)
    form, source = GridFormat(3, 32), weight.t().contiguous()
    steps, grid = round_columns(source, gram, form, GptqPlan(), None)
    whole = fit_scales(source, gram, steps, grid, form, 0.01)
    monkeypatch.setattr(gptq, "SYSTEM_ELEMENTS", 5 * (WIDTH // 32) ** 2)
    parts = fit_scales(source, gram, steps, grid, form, 0.01)
    assert torch.allclose(parts.scales, whole.scales, rtol=2e-3)
    assert torch.equal(parts.zeros, whole.zeros)
    assert not torch.equal(whole.scales, grid.scales)


def test_silent_inputs_zero_groups_and_zero_rows_stay_finite() -> None:
    weight, gram = make_layer(6)
    gram[40:80] = 0.0
    gram[:, 40:80] = 0.0
    weight[3] = 0.0
    weight[5, 64:128] = 0.0
    for act_order in (False, True):
        found = quantize_gptq(weight, gram, GridFormat(3, 64), GptqPlan(act_order))
        assert np.isfinite(found.scales).all()
        assert (found.scales > 0).all()
        values = dequantize_to_tensor(found, torch.float32)
        assert not values[3].any()
        assert float((values - weight).abs().max()) < 4.0
    silent = quantize_gptq(weight, torch.zeros_like(gram), GridFormat(3, 64), GptqPlan())
    assert np.isfinite(silent.scales).all()


def test_fewer_tokens_than_inputs_are_enough() -> None:
    weight, _ = make_layer(7)
    features = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(7))
    gram = features.T @ features
    found = quantize_gptq(weight, gram, GridFormat(3, 64), GptqPlan(act_order=True))
    plain = quantize_rtn(weight.numpy(), 3, 64)
    assert float(measure(weight, found, gram).sum()) < 0.2 * float(measure(weight, plain, gram).sum())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("in_weight", [True, False])
def test_what_is_no_number_is_refused(bad: float, in_weight: bool) -> None:
    weight, gram = make_layer(8)
    (weight if in_weight else gram)[2, 7] = bad
    with pytest.raises(QuantizationError, match="NaN or infinity") as caught:
        quantize_gptq(weight, gram, GridFormat(4, 64), GptqPlan())
    assert caught.value.remedy
