from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeawq.checkpoints import grid
from edgeawq.checkpoints.grid import dequantize, quantize_rtn
from edgeawq.errors import QuantizationError


def round_one_group(group: np.ndarray, bits: int) -> tuple[list[int], np.float16, int]:
    """The rule of the grid for one ordinary group, number by number."""
    top = 2**bits - 1
    low, high = min(0.0, float(group.min())), max(0.0, float(group.max()))
    scale = np.float16((high - low) / top)
    zero = min(top, max(0, round(-low / float(scale))))
    q = [min(top, max(0, int(np.rint(np.float32(value) / np.float32(scale))) + zero)) for value in group]
    return q, scale, zero


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize(("out_features", "groups", "group_size"), [(1, 1, 1), (3, 5, 7), (17, 2, 64), (40, 3, 32)])
def test_quantize_rtn_follows_the_rule_group_by_group(bits, out_features, groups, group_size):
    rng = np.random.default_rng(bits * 1000 + out_features)
    weight = rng.normal(size=(out_features, groups * group_size)).astype(np.float32)
    linear = quantize_rtn(weight, bits, group_size)
    assert linear.shape == weight.shape
    assert (linear.q.dtype, linear.scales.dtype, linear.zeros.dtype) == (np.uint8, np.float16, np.uint8)
    for row in range(out_features):
        for group in range(groups):
            part = slice(group * group_size, (group + 1) * group_size)
            q, scale, zero = round_one_group(weight[row, part], bits)
            assert linear.q[row, part].tolist() == q
            assert linear.scales[row, group] == scale
            assert linear.zeros[row, group] == zero


@settings(deadline=None, max_examples=200)
@given(
    weight=hnp.arrays(
        np.float32, (3, 8), elements=st.floats(-6e4, 6e4, width=32, allow_nan=False, allow_infinity=False)
    ),
    bits=st.integers(2, 8),
)
def test_error_is_at_most_a_step_and_half_a_step_inside(weight, bits):
    linear = quantize_rtn(weight, bits, 4)
    scales = linear.scales.astype(np.float64).repeat(4, axis=1)
    # Half a step from rounding, at the ends another from rounding zero and scale. Subnormals are never rounded down.
    assert (np.abs(dequantize(linear) - weight.astype(np.float64)) <= 1.01 * scales + 1e-30).all()
    assert np.isfinite(linear.scales).all()
    assert (linear.scales > 0).all()
    assert linear.q.max(initial=0) < 2**bits
    assert linear.zeros.max(initial=0) < 2**bits


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_rounding_the_dequantized_weight_again_changes_nothing(bits):
    rng = np.random.default_rng(bits)
    top = 2**bits - 1
    q = rng.integers(0, top + 1, (9, 96), dtype=np.uint8)
    q[:, ::32], q[:, 1::32] = 0, top  # every group reaches both ends, so its range is unambiguous
    scales = (rng.uniform(0.5, 2.0, (9, 3)) * 2.0 ** rng.integers(-9, 3, (9, 3))).astype(np.float16)
    zeros = rng.integers(0, top + 1, (9, 3), dtype=np.uint8)
    first = grid.QuantizedLinear(q, scales, zeros, bits, 32)
    again = quantize_rtn(dequantize(first), bits, 32)
    assert np.array_equal(again.q, q)
    assert np.array_equal(again.scales, scales)
    assert np.array_equal(again.zeros, zeros)


def test_groups_on_one_side_of_zero_keep_their_values():
    weight = np.concatenate(
        [np.full((2, 32), 5.0), np.full((2, 32), -3.0), np.linspace(5, 6, 64).reshape(2, 32)], axis=1
    )
    restored = dequantize(quantize_rtn(weight, 4, 32))
    assert np.abs(restored - weight).max() <= 6 / 15 * 0.51


def test_groups_of_zeros_stay_exactly_zero():
    weight = np.zeros((4, 64), np.float32)
    weight[1, 40] = 0.5
    linear = quantize_rtn(weight, 4, 32)
    assert np.array_equal(dequantize(linear) != 0, weight != 0)
    assert np.isfinite(linear.scales).all()
    assert linear.q[0].max() == linear.zeros[0].max() == 0


@pytest.mark.parametrize("size", [1e-12, 3e-8, 1e-6, 1e-5, 1e-3])
def test_tiny_weights_use_subnormal_scales_without_clipping(size):
    weight = np.random.default_rng(1).uniform(-size, size, (8, 64)).astype(np.float32)
    linear = quantize_rtn(weight, 4, 32)
    error = np.abs(dequantize(linear).astype(np.float64) - weight)
    assert (linear.scales > 0).all()
    assert (error <= linear.scales.astype(np.float64).repeat(32, axis=1) * 1.0).all()
    assert error.max() <= max(2 * size / 15, 2.0**-24)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_an_error(value):
    weight = np.zeros((5, 8), np.float32)
    weight[3, 2] = value
    with pytest.raises(QuantizationError, match="row 3"):
        quantize_rtn(weight, 4, 4)


def test_a_scale_beyond_float16_is_an_error():
    with pytest.raises(QuantizationError, match="float16"):
        quantize_rtn(np.full((1, 4), 1e6, np.float32), 2, 4)


@pytest.mark.parametrize(
    ("shape", "bits", "group_size", "words"),
    [
        ((4, 10), 4, 4, "does not divide"),
        ((4, 8), 1, 4, "bits"),
        ((4, 8), 9, 4, "bits"),
        ((4, 8), 4, 0, "group size"),
        ((8,), 4, 4, "shape"),
        ((0, 8), 4, 4, "shape"),
    ],
)
def test_settings_that_make_no_sense_are_errors(shape, bits, group_size, words):
    with pytest.raises(QuantizationError, match=words):
        quantize_rtn(np.ones(shape, np.float32), bits, group_size)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_slices_of_rows_give_the_same_as_the_whole(monkeypatch, dtype):
    weight = np.random.default_rng(7).normal(size=(53, 48)).astype(dtype)
    whole = quantize_rtn(weight, 4, 16)
    values = dequantize(whole)
    monkeypatch.setattr(grid, "SLICE_ELEMENTS", 100)
    sliced = quantize_rtn(weight, 4, 16)
    assert np.array_equal(whole.q, sliced.q)
    assert np.array_equal(whole.scales, sliced.scales)
    assert np.array_equal(whole.zeros, sliced.zeros)
    assert np.array_equal(values, dequantize(sliced))
