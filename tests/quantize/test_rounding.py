from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeawq.checkpoints.grid import quantize_rtn
from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.quantize.gptq import GptqPlan, quantize_gptq
from edgeawq.quantize.grid import GridFormat, dequantize_to_tensor
from edgeawq.quantize.llama import BlockWeights, RopeTables, make_rope, read_block, run_block
from edgeawq.quantize.parallel import start_workers
from edgeawq.quantize.rounding import (
    RoundingPlan,
    finish_linear,
    learn_rounding,
    prepare_linear,
    read_scales,
    step_rows,
)
from tests.quantize.runs import LINEARS, SHAPE, is_same_grid
from tests.tiny_models import TinyCheckpoint, make_tiny_model

LENGTH = 32


def make_block(seed: int) -> tuple[TinyCheckpoint, BlockWeights, torch.Tensor, torch.Tensor, RopeTables]:
    """A tiny float block, its input and output."""
    model = make_tiny_model(seed, quantized=False, **SHAPE)
    weights = read_block(model, 0, torch.float32)
    rope = make_rope(model.config, LENGTH, torch.float32)
    hidden = torch.randn(8, LENGTH, model.config.hidden_size, generator=torch.Generator().manual_seed(seed))
    return model, weights, hidden, run_block(hidden, weights, model.config, rope), rope


def round_all(weights: BlockWeights, bits: int) -> dict[str, QuantizedLinear]:
    return {module: quantize_rtn(weights[f"{module}.weight"].numpy(), bits, 32) for module in LINEARS}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("by_columns", [False, True])
def test_learning_starts_from_exactly_what_was_given(bits: int, by_columns: bool) -> None:
    weight = torch.randn(20, 96, generator=torch.Generator().manual_seed(bits))
    start = quantize_rtn(weight.numpy(), bits, 32)
    if by_columns:
        features = torch.randn(200, 96) @ torch.randn(96, 96)
        start = quantize_gptq(weight, features.T @ features, GridFormat(bits, 32), GptqPlan())
    layer = prepare_linear(weight, start)
    assert is_same_grid(finish_linear(layer), start)
    assert torch.equal(layer.rounded.detach(), dequantize_to_tensor(start, torch.float32))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_block_gets_closer_to_its_float_self(bits: int) -> None:
    model, weights, hidden, expected, rope = make_block(bits)
    start = round_all(weights, bits)
    with start_workers(2) as workers:
        learned = learn_rounding(
            weights, start, hidden, expected, model.config, rope, RoundingPlan(steps=60), 1, workers
        )

    def rate(linears: dict[str, QuantizedLinear]) -> float:
        rounded = weights | {
            f"{m}.weight": dequantize_to_tensor(linear, torch.float32) for m, linear in linears.items()
        }
        return float((run_block(hidden, rounded, model.config, rope) - expected).square().mean())

    assert rate(learned) < 0.7 * rate(start)
    for module, linear in learned.items():
        assert (linear.bits, linear.group_size) == (bits, 32)
        assert np.array_equal(linear.zeros, start[module].zeros)
        assert int(linear.q.max()) < 1 << bits
        assert np.isfinite(linear.scales).all()
        assert (linear.scales > 0).all()


def test_the_result_depends_on_the_seed_but_not_on_the_threads() -> None:
    model, weights, hidden, expected, rope = make_block(9)
    start = round_all(weights, 3)
    results = []
    for seed, n_threads in ((1, 1), (1, 3), (2, 2)):
        with start_workers(n_threads) as workers:
            plan = RoundingPlan(steps=5, sequences=3)
            results.append(learn_rounding(weights, start, hidden, expected, model.config, rope, plan, seed, workers))
    first, same, other = results
    assert all(is_same_grid(first[module], same[module]) for module in LINEARS)
    assert not all(is_same_grid(first[module], other[module]) for module in LINEARS)


def test_a_step_follows_the_gradient_as_if_rounding_were_not_there() -> None:
    """Against autograd through s · clamp(w / s + v) with the rounding error held fixed."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(12, 64, generator=generator)
    start = quantize_rtn(weight.numpy(), 3, 32)
    start = QuantizedLinear(start.q, (start.scales * np.float16(0.7)), start.zeros, 3, 32)  # some weights are clamped
    layer = prepare_linear(weight, start)
    gradient = torch.randn(12, 64, generator=generator)
    offset = layer.offset.clone().requires_grad_()
    logs = layer.log_scales.clone().requires_grad_()
    scales = layer.first_scales * logs.exp()
    steps = layer.weight / scales + offset
    rounded = steps + (steps.round() - steps).detach()
    inside = torch.minimum(torch.maximum(rounded, -layer.zeros), 7 - layer.zeros)
    (inside * scales).backward(gradient.view_as(inside))
    assert offset.grad is not None
    assert logs.grad is not None
    before = layer.offset.clone()
    for rows in (slice(0, 5), slice(5, 12)):
        step_rows(layer, rows, gradient[rows], 0.01, 0.02)
    assert torch.allclose(layer.offset, (before - 0.01 * offset.grad.sign()).clamp(-1, 1))
    assert torch.allclose(layer.log_scales, -0.02 * logs.grad.sign())
    finished = finish_linear(layer)
    assert torch.allclose(layer.rounded.detach(), dequantize_to_tensor(finished, torch.float32))


def test_scales_stay_inside_float16() -> None:
    first = torch.tensor([[[6e4]], [[1e-4]]])
    scales = read_scales(torch.tensor([[[2.0]], [[-9.0]]]), first)
    assert torch.isfinite(scales.half()).all()
    assert bool((scales > 0).all())
