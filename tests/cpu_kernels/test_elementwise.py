from __future__ import annotations

import numpy as np
import pytest

from cpu_kernels import abi
from cpu_kernels.elementwise import reference_quantize_row, reference_rms_norm
from tests.cpu_kernels.native_kernels import VARIANTS, address, load_kernels, normalized_error


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("width", [32, 576, 1536, 4096])
def test_rms_norm(variant, width):
    rng = np.random.default_rng()
    x = (rng.normal(size=width) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    weight = rng.normal(size=width).astype(np.float32)
    out = np.full(width, np.nan, np.float32)
    eps = int(np.float32(1e-5).view(np.int32))
    load_kernels(variant).call("rms_norm", address(x), address(weight), width, eps, address(out))
    assert normalized_error(out, reference_rms_norm(x, weight, 1e-5)) < 1e-12


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("width", "group_size"), [(32, 32), (576, 64), (1536, 128), (192, 96)])
def test_quantize_row_agrees_with_the_reference_to_the_bit(variant, width, group_size):
    rng = np.random.default_rng()
    x = rng.normal(size=width).astype(np.float32)
    x[:group_size] = 0  # a group of zeros must not divide by zero
    x[-1] = 1000.0  # and an outlier must not touch another group
    out = np.full(abi.activation_row_bytes(width), 0xA5, np.uint8)
    load_kernels(variant).call("quantize_row", address(x), width, group_size, address(out))
    q, scales, sums = reference_quantize_row(x, group_size)
    groups = width // group_size
    np.testing.assert_array_equal(out[:width].view(np.int8), q)
    np.testing.assert_array_equal(out[width : width + 4 * groups].view(np.float32), scales)
    np.testing.assert_array_equal(out[width + 4 * groups : width + 8 * groups].view(np.float32), sums)
    assert np.all(out[width + 8 * groups :] == 0xA5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_exponential_is_right_to_two_parts_in_ten_million(variant):
    x = np.concatenate([np.linspace(-87, 88, 4096 - 16), np.zeros(8), np.full(8, -500.0)]).astype(np.float32)
    out = np.full(x.size, np.nan, np.float32)
    load_kernels(variant).call("exponential", address(x), x.size, address(out))
    expected = np.exp(np.clip(x.astype(np.float64), -87, 88))
    assert np.max(np.abs(out / expected - 1)) < 2e-7
    assert np.all(out[-16:-8] == 1)
