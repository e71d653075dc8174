from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeawq.checkpoints.grid import dequantize, quantize_rtn
from edgeawq.quantize.grid import GridFormat, choose_grid, dequantize_to_tensor, round_to_linear
from tests.quantize.runs import is_same_grid


def make_weight(seed: int, rows: int, groups: int, group_size: int) -> np.ndarray:
    """Groups of every kind: ordinary, zero, one-sided, tiny (float16 subnormal scales), with an outlier."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, groups, group_size)).astype(np.float32) * 0.05
    weight[0, 0] = 0.0
    weight[1 % rows, 0] = np.abs(weight[1 % rows, 0]) + 0.5
    weight[2 % rows, -1] = -np.abs(weight[2 % rows, -1]) - 0.5
    weight[3 % rows, 0] *= 1e-6
    weight[4 % rows, -1] *= 1e-9
    weight[5 % rows, 0, 3] = 40.0
    return weight.reshape(rows, -1)


@pytest.mark.parametrize(("rows", "groups", "group_size"), [(7, 1, 32), (33, 3, 64), (64, 5, 32), (9, 2, 128)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_full_ranges_give_the_grid_of_rounding_to_nearest(
    rows: int, groups: int, group_size: int, bits: int, symmetric: bool
) -> None:
    weight = make_weight(rows + bits, rows, groups, group_size)
    form = GridFormat(bits, group_size, symmetric)
    wanted = quantize_rtn(weight, bits, group_size, is_symmetric=symmetric)
    tensor = torch.from_numpy(weight)
    parts = tensor.view(rows, groups, group_size)
    scales, zeros = choose_grid(parts.amin(-1).clamp(max=0.0), parts.amax(-1).clamp(min=0.0), form)
    found = round_to_linear(tensor, scales, zeros, form)
    assert is_same_grid(found, wanted)
    assert np.array_equal(dequantize_to_tensor(found, torch.float32).numpy(), dequantize(wanted))


def test_narrow_ranges_saturate_at_their_ends() -> None:
    weight = torch.tensor([[-2.0, -1.0, -0.4, 0.0, 0.3, 0.7, 1.0, 3.0]])
    form = GridFormat(4, 8)
    scales, zeros = choose_grid(torch.tensor([[-0.5]]), torch.tensor([[1.0]]), form)
    linear = round_to_linear(weight, scales, zeros, form)
    values = dequantize_to_tensor(linear, torch.float64)[0]
    assert linear.q[0, 0] == linear.q[0, 1] == 0
    assert linear.q[0, -1] == 15
    assert values.min() == pytest.approx(-0.5, abs=1e-3)
    assert values.max() == pytest.approx(1.0, abs=1e-3)
    assert (values[2:7] - weight[0, 2:7]).abs().max() <= float(scales) / 2 + 1e-6
