from __future__ import annotations

import numpy as np
import pytest

from cpu_kernels.estimates import estimate_linear
from edgeawq.checkpoints.model import QuantizedLinear
from packager.layouts import pack_gate_up, pack_linear
from tests.cpu_kernels.native_kernels import (
    LINEAR_VARIANTS,
    VARIANTS,
    activation_rows,
    address,
    assert_sums_agree,
    descriptor,
    expected_linear,
    load_kernels,
    magnitude,
    normalized_error,
    random_linear,
)

SHAPES = [(8, 32, 32), (24, 576, 64), (21, 576, 64), (576, 1536, 64), (40, 1536, 128), (17, 96, 32), (1, 192, 96)]
STORE, ADD = 0, 1


@pytest.mark.parametrize("variant", LINEAR_VARIANTS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("out_features", "in_features", "group_size"), SHAPES)
def test_int8_activations_agree_with_float64(variant, bits, out_features, in_features, group_size):
    rng = np.random.default_rng()
    kernels = load_kernels(variant)
    linear = random_linear(rng, out_features, in_features, bits, group_size)
    weights = pack_linear(linear, kernels.layout)
    for tokens in (1, 3, 4, 9):
        rows, meant = activation_rows(rng.normal(size=(tokens, in_features)).astype(np.float32), group_size)
        padded = -(-out_features // kernels.layout.record_rows) * kernels.layout.record_rows
        out = np.full((tokens, padded), np.nan, np.float32)
        words = descriptor(weights, linear)
        kernels.call(
            f"linear_w{bits}a8", address(words), STORE, address(rows), rows.shape[1], address(out), padded * 4, tokens,
            0, padded // kernels.layout.record_rows,
        )  # fmt: skip
        assert_sums_agree(out[:, :out_features], expected_linear(meant, linear), magnitude(meant, linear))
        assert not np.any(out[:, out_features:])  # rows that only fill up the last record


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("out_features", "in_features", "group_size"), SHAPES)
def test_float_activations_agree_with_float64(variant, bits, out_features, in_features, group_size):
    rng = np.random.default_rng()
    kernels = load_kernels(variant)
    linear = random_linear(rng, out_features, in_features, bits, group_size)
    weights = pack_linear(linear, kernels.layout)
    x = rng.normal(size=(6, in_features)).astype(np.float32)
    padded = -(-out_features // kernels.layout.record_rows) * kernels.layout.record_rows
    before = rng.normal(size=(6, padded)).astype(np.float32)
    bias = rng.normal(size=padded).astype(np.float32)
    out = before.copy()
    words = descriptor(weights, linear, bias=address(bias))
    kernels.call(
        f"linear_w{bits}a32", address(words), ADD, address(x), in_features * 4, address(out), padded * 4, 6, 0,
        padded // kernels.layout.record_rows,
    )  # fmt: skip
    added = before[:, :out_features], bias[:out_features]
    magnitudes = magnitude(x, linear) + sum(map(np.abs, added))
    assert_sums_agree(out[:, :out_features], expected_linear(x, linear) + sum(added), magnitudes)


@pytest.mark.parametrize("variant", LINEAR_VARIANTS)
@pytest.mark.parametrize("sign", [-127, 127])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_sums_do_not_overflow_at_the_extremes(variant, sign, bits):
    kernels = load_kernels(variant)
    in_features, group_size, rows = 11008, 128, kernels.layout.record_rows
    tokens = 5  # four at once, and one
    groups = in_features // group_size
    # zero points at both ends: the largest weight is +top, the smallest -top
    for q, zero in (((1 << bits) - 1, 0), (0, (1 << bits) - 1)):
        linear = QuantizedLinear(
            q=np.full((rows, in_features), q, np.uint8),
            scales=np.ones((rows, groups), np.float16),
            zeros=np.full((rows, groups), zero, np.uint8),
            bits=bits,
            group_size=group_size,
        )
        x = np.full((tokens, in_features), sign, np.float32)
        activations, meant = activation_rows(x, group_size)
        out = np.full((tokens, rows), np.nan, np.float32)
        weights = pack_linear(linear, kernels.layout)
        words = descriptor(weights, linear)
        kernels.call(
            f"linear_w{bits}a8", address(words), STORE, address(activations), activations.shape[1], address(out),
            4 * rows, tokens, 0, 1,
        )  # fmt: skip
        np.testing.assert_allclose(out, expected_linear(meant, linear), rtol=1e-6)


@pytest.mark.parametrize("variant", LINEAR_VARIANTS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("tokens", [1, 5])
def test_gated_is_silu_of_gate_times_up(variant, bits, tokens):
    rng = np.random.default_rng()
    kernels = load_kernels(variant)
    gate, up = (random_linear(rng, 96, 576, bits, 64) for _ in range(2))
    weights = pack_gate_up(gate, up, kernels.layout)
    rows, meant = activation_rows(rng.normal(size=(tokens, 576)).astype(np.float32) * 0.3, 64)
    out = np.full((tokens, 96), np.nan, np.float32)
    words = descriptor(weights, gate, out_features=192)
    kernels.call(
        f"gated_w{bits}a8", address(words), address(rows), rows.shape[1], address(out), 96 * 4, tokens, 0,
        96 // kernels.layout.record_rows,
    )  # fmt: skip
    g, u = expected_linear(meant, gate), expected_linear(meant, up)
    assert normalized_error(out, g / (1 + np.exp(-g)) * u) < 1e-10


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_share_of_the_records_touches_only_its_rows(variant):
    rng = np.random.default_rng()
    kernels = load_kernels(variant)
    rows = kernels.layout.record_rows
    linear = random_linear(rng, 4 * rows, 64, 4, 32)
    weights = pack_linear(linear, kernels.layout)
    x = rng.normal(size=(1, 64)).astype(np.float32)
    out = np.full((1, 4 * rows), 7.25, np.float32)
    words = descriptor(weights, linear)
    kernels.call("linear_w4a32", address(words), STORE, address(x), 256, address(out), 16 * rows, 1, 1, 3)
    assert np.all(out[:, :rows] == 7.25) and np.all(out[:, 3 * rows :] == 7.25)
    touched = slice(rows, 3 * rows)
    assert_sums_agree(out[:, touched], expected_linear(x, linear)[:, touched], magnitude(x, linear)[:, touched])


def test_estimate_counts_every_weight_once():
    cost = estimate_linear(576, 1536, 4, 64)
    assert cost.operations == 2 * 576 * 1536
    weights = 576 * 1536 // 2 + 576 * 24 * (2 + 0.5)
    assert cost.bytes == weights + 1536 + 8 * 24 + 4 * 576
    assert estimate_linear(576, 1536, 4, 64, tokens=8).bytes - cost.bytes == 7 * (1536 + 8 * 24 + 4 * 576)
