from __future__ import annotations

import pytest
import torch

from edgeawq.checkpoints.grid import dequantize, quantize_rtn
from edgeawq.quantize.grid import GridFormat
from edgeawq.quantize.parallel import Workers, start_workers
from edgeawq.quantize.scale_search import (
    IDENTITY,
    NO_CLIP,
    SCALE_RANGE,
    LayerProblem,
    make_scales,
    measure_loss,
    measure_mean_weight,
    pick_starts,
    sample_rows,
    search_scales,
)

GROUP = 32
FORM = GridFormat(4, GROUP)


def keep(scales: torch.Tensor) -> torch.Tensor:
    return scales


def make_problem(seed: int, rows: int = 24, width: int = 96) -> tuple[LayerProblem, torch.Tensor]:
    """A layer whose inputs have a few loud channels, and mean |x|."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(400, width, generator=generator)
    features *= torch.where(torch.rand(width, generator=generator) < 0.05, 30.0, 1.0)
    weight = torch.randn(rows, width, generator=generator)
    problem = LayerProblem(weight, features.T @ features, torch.rand(rows, generator=generator) + 0.5, FORM)
    return problem, features.abs().mean(0)


def test_identity_loss_is_that_of_rounding_to_nearest() -> None:
    problem, _ = make_problem(1)
    error = torch.from_numpy(dequantize(quantize_rtn(problem.weight.numpy(), 4, GROUP))) - problem.weight
    wanted = float((((error @ problem.gram) * error).sum(1) * problem.row_weights).sum())
    found = measure_loss((problem,), torch.ones(96), NO_CLIP)
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_choice_lowers_the_loss_where_channels_are_loud(seed: int, workers: Workers) -> None:
    problem, mean_abs = make_problem(seed)
    choice = search_scales((problem,), mean_abs, keep, workers)
    plain = measure_loss((problem,), torch.ones(96), NO_CLIP)
    assert choice.exponents != IDENTITY
    assert measure_loss((problem,), choice.channel_scales, NO_CLIP) < plain


def test_the_choice_does_not_depend_on_the_number_of_threads() -> None:
    problem, mean_abs = make_problem(7)
    choices = []
    for count in (1, 3):
        with start_workers(count) as pool:
            choices.append(search_scales((problem,), mean_abs, keep, pool))
    assert choices[0].exponents == choices[1].exponents
    assert torch.equal(choices[0].channel_scales, choices[1].channel_scales)


def test_tied_scales_are_tied(workers: Workers) -> None:
    problem, mean_abs = make_problem(8)

    def tie(scales: torch.Tensor) -> torch.Tensor:
        return scales.view(2, 48).log().mean(0).exp().repeat(2)

    scales = search_scales((problem,), mean_abs, tie, workers).channel_scales
    assert torch.equal(scales[:48], scales[48:])


def test_scales_are_centred_and_bounded() -> None:
    mean_abs = torch.logspace(-30, 4, 64)
    mean_abs[5] = 0.0
    weight = torch.rand(64)
    assert torch.equal(make_scales(IDENTITY, mean_abs, weight, keep), torch.ones(64))
    scales = make_scales((1.0, 0.0), mean_abs, weight, keep)
    assert torch.isfinite(scales).all()
    assert float(scales.min()) >= 1 / SCALE_RANGE
    assert float(scales.max()) <= SCALE_RANGE
    gentle = make_scales((0.5, 0.0), torch.rand(64) + 0.5, weight, keep)
    assert float(gentle.max() * gentle.min()) == pytest.approx(1.0, rel=1e-5)


def test_silent_inputs_and_zero_weights_give_finite_scales(workers: Workers) -> None:
    problem = LayerProblem(torch.zeros(8, 64), torch.zeros(64, 64), torch.zeros(8), FORM)
    choice = search_scales((problem,), torch.zeros(64), keep, workers)
    assert torch.isfinite(choice.channel_scales).all()
    assert bool((choice.channel_scales > 0).all())
    assert torch.equal(measure_mean_weight(torch.zeros(8, 64), GROUP), torch.zeros(64))


def test_starts_hold_identity_and_the_best_and_differ() -> None:
    ranked = {(a / 10, b / 10): abs(a - 6) + 2.0 * b for a in range(11) for b in range(3)}
    starts = pick_starts(ranked)
    assert starts[:2] == [IDENTITY, (0.6, 0.0)]
    others = starts[1:]
    assert all(abs(x - u) + abs(y - v) >= 0.25 for i, (x, y) in enumerate(others) for u, v in others[:i])


def test_sampled_rows_stand_for_all() -> None:
    problem, _ = make_problem(9, rows=300)
    (sampled,) = sample_rows((problem,), 64)
    assert 64 <= len(sampled.weight) < 128
    assert torch.equal(sampled.weight, problem.weight[::4])
    small, _ = make_problem(9, rows=10)
    (whole,) = sample_rows((small,), 64)
    assert torch.equal(whole.weight, small.weight)
    assert torch.equal(whole.row_weights, small.row_weights)
