from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeawq.checkpoints.config import RopeScaling
from edgeawq.errors import UnsupportedModelError
from packager.rope import compute_rope
from tests.tiny_models import hf_config, make_tiny_config

SCALINGS = {
    "none": None,
    "linear": RopeScaling("linear", factor=4.0),
    "dynamic": RopeScaling("dynamic", factor=2.0),
    "llama3": RopeScaling("llama3", 8.0, 1.0, 4.0, original_max_position_embeddings=8192),
    "llama3.2": RopeScaling("llama3", 32.0, 1.0, 4.0, original_max_position_embeddings=8192),
    "yarn": RopeScaling("yarn", factor=4.0, original_max_position_embeddings=4096),
    "yarn with its own factor": RopeScaling(
        "yarn", factor=16.0, original_max_position_embeddings=2048, attention_factor=1.1, beta_fast=24.0, beta_slow=2.0
    ),
}


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("case", SCALINGS)
def test_frequencies_are_those_of_transformers(case: str, theta: float, head_dim: int) -> None:
    config_module = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = make_tiny_config(head_dim=head_dim, rope_theta=theta, max_positions=16384, rope_scaling=SCALINGS[case])
    settings: dict[str, Any] = hf_config(config)
    reference = LlamaRotaryEmbedding(config_module.LlamaConfig(**settings))
    frequencies, factor = compute_rope(config)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, reference.inv_freq.numpy(), rtol=2e-6)
    assert factor == pytest.approx(reference.attention_scaling)


def test_without_scaling_the_formula_is_the_papers() -> None:
    frequencies, factor = compute_rope(make_tiny_config(head_dim=64, rope_theta=10_000.0))
    assert factor == 1.0
    for pair in range(32):
        assert frequencies[pair] == np.float32(10_000.0 ** (-2 * pair / 64))


@given(
    factor=st.floats(1.0, 64.0), length=st.integers(256, 32768), head_dim=st.sampled_from([2, 16, 62, 128]),
    kind=st.sampled_from(["linear", "llama3", "yarn"]),
)  # fmt: skip
def test_scaling_only_slows_waves_down_and_at_most_by_the_factor(
    factor: float, length: int, head_dim: int, kind: str
) -> None:
    plain, _ = compute_rope(make_tiny_config(head_dim=head_dim))
    scaling = RopeScaling(kind, factor, 1.0, 4.0, length)
    scaled, attention = compute_rope(make_tiny_config(head_dim=head_dim, rope_scaling=scaling))
    ratio = plain.astype(np.float64) / scaled
    assert np.isfinite(scaled).all()
    assert (ratio >= 1 - 1e-6).all()
    assert (ratio <= factor * (1 + 1e-6)).all()
    assert attention == (pytest.approx(0.1 * math.log(factor) + 1) if kind == "yarn" else 1.0)


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        (RopeScaling("longrope"), "longrope"),
        (RopeScaling("linear", factor=0.0), "positive"),
        (RopeScaling("linear", factor=math.nan), "positive"),
        (RopeScaling("yarn", factor=2.0, beta_slow=-1.0), "positive"),
        (RopeScaling("llama3", 8.0, 4.0, 4.0, 8192), "high_freq_factor"),
    ],
)
def test_scaling_that_makes_no_sense_is_refused(scaling: RopeScaling, named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named) as caught:
        compute_rope(make_tiny_config(rope_scaling=scaling))
    assert caught.value.remedy
