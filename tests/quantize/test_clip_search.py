from __future__ import annotations

import pytest
import torch

from edgeawq.checkpoints.grid import dequantize, quantize_rtn
from edgeawq.quantize.clip_search import CLIP_PLAN, NO_CLIP, ROWS_PER_TASK, search_clip
from edgeawq.quantize.grid import GridFormat, dequantize_to_tensor, round_to_linear
from edgeawq.quantize.parallel import Workers
from tests.quantize.runs import is_same_grid

GROUP = 32
FORM = GridFormat(4, GROUP)


def make_layer(seed: int, rows: int = 40, width: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5 + torch.eye(width)
    features = torch.randn(500, width, generator=generator) @ mixing
    weight = torch.randn(rows, width, generator=generator)
    weight += 4.0 * (torch.rand(rows, width, generator=generator) < 0.02)  # single large weights
    return weight, features.T @ features


def measure_error(weight: torch.Tensor, rounded: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """The error of every row, [rows]."""
    delta = (rounded - weight).double()
    return ((delta @ gram.double()) * delta).sum(1)


def test_without_clip_the_grid_is_that_of_rounding_to_nearest(workers: Workers) -> None:
    weight, gram = make_layer(1)
    grid = search_clip(weight, gram, FORM, workers, NO_CLIP)
    linear = round_to_linear(weight, grid.scales, grid.zeros, FORM)
    assert is_same_grid(linear, quantize_rtn(weight.numpy(), 4, GROUP))
    assert bool((grid.high_ratio == 1).all())
    assert bool((grid.low_ratio == 1).all())


@pytest.mark.parametrize("seed", range(4))
def test_no_row_is_worse_than_rounding_to_nearest(seed: int, workers: Workers) -> None:
    weight, gram = make_layer(seed, rows=33)
    plain = torch.from_numpy(dequantize(quantize_rtn(weight.numpy(), 4, GROUP)))
    grid = search_clip(weight, gram, FORM, workers)
    before = measure_error(weight, plain, gram)
    after = measure_error(weight, grid.round(weight, FORM), gram)
    assert float(after.sum()) < 0.8 * float(before.sum())
    assert float((after <= before).double().mean()) > 0.9


def test_every_further_pass_lowers_the_error(workers: Workers) -> None:
    """From the second pass on, a group keeps its range unless the whole row gets better."""
    weight, gram = make_layer(5)
    errors = []
    for n_passes in range(1, len(CLIP_PLAN) + 1):
        grid = search_clip(weight, gram, FORM, workers, CLIP_PLAN[:n_passes])
        errors.append(measure_error(weight, grid.round(weight, FORM), gram))
    for before, after in zip(errors, errors[1:], strict=False):
        assert bool((after <= before * (1 + 1e-4)).all())


def test_what_is_rounded_is_what_is_stored(workers: Workers) -> None:
    weight, gram = make_layer(6)
    grid = search_clip(weight, gram, FORM, workers)
    linear = round_to_linear(weight, grid.scales, grid.zeros, FORM)
    assert torch.equal(dequantize_to_tensor(linear, torch.float32), grid.round(weight, FORM))
    assert int(linear.q.max()) <= 15
    assert int(linear.zeros.max()) <= 15


def test_rows_are_independent_of_how_they_are_split(workers: Workers) -> None:
    weight, gram = make_layer(7, rows=ROWS_PER_TASK + 9, width=64)
    grid = search_clip(weight, gram, FORM, workers)
    assert grid.scales.shape == grid.zeros.shape == grid.high_ratio.shape == (ROWS_PER_TASK + 9, 2)
    tail = search_clip(weight[ROWS_PER_TASK:], gram, FORM, workers)
    assert torch.equal(grid.scales[ROWS_PER_TASK:], tail.scales)
    assert torch.equal(grid.zeros[ROWS_PER_TASK:], tail.zeros)


def test_groups_of_zeros_stay_zero(workers: Workers) -> None:
    weight, gram = make_layer(8)
    weight[3] = 0.0
    weight[5, :GROUP] = 0.0
    grid = search_clip(weight, gram, FORM, workers)
    rounded = grid.round(weight, FORM)
    assert bool((rounded[3] == 0).all())
    assert bool((rounded[5, :GROUP] == 0).all())
    assert torch.isfinite(grid.scales).all()
    assert bool((grid.scales > 0).all())
