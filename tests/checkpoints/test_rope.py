from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeawq.checkpoints.config import RopeScaling
from edgeawq.checkpoints.rope import compute_inverse_frequencies, compute_rope, compute_rope_tables
from edgeawq.errors import UnsupportedModelError
from tests.tiny_models import make_tiny_config

RULES = {
    "default": None,
    "linear": RopeScaling("linear", factor=3.0),
    "dynamic": RopeScaling("dynamic", factor=4.0, original_max_position_embeddings=256),
    "llama3": RopeScaling("llama3", 8.0, 1.0, 4.0, original_max_position_embeddings=64),
    "llama3 without a length": RopeScaling("llama3", 32.0, 1.0, 4.0),
    "yarn": RopeScaling("yarn", factor=4.0, original_max_position_embeddings=128),
    "yarn with a factor of its own": RopeScaling(
        "yarn", factor=2.0, original_max_position_embeddings=96, attention_factor=0.8, beta_fast=16.0, beta_slow=2.0
    ),
}


FIELDS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [17, 256, 700])
@pytest.mark.parametrize("head_dim", [16, 64])
def test_frequencies_are_those_of_transformers(rule: str, length: int, head_dim: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = RULES[rule]
    config = make_tiny_config(
        hidden=2 * head_dim, n_heads=2, n_kv_heads=1, head_dim=head_dim, rope_scaling=scaling, max_positions=256
    )
    parameters: dict[str, object] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling is not None:
        parameters["rope_type"] = scaling.kind
        parameters |= {name: getattr(scaling, name) for name in FIELDS[scaling.kind] if getattr(scaling, name)}
    reference = LlamaConfig(
        hidden_size=config.hidden_size,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters=parameters,
    )
    found, factor = compute_inverse_frequencies(config, length)
    if scaling is None:
        wanted = config.rope_theta ** -(np.arange(0, head_dim, 2) / head_dim)
        wanted_factor = 1.0
    else:
        tensor, wanted_factor = ROPE_INIT_FUNCTIONS[scaling.kind](reference, "cpu", seq_len=length)
        wanted = tensor.double().numpy()
    np.testing.assert_allclose(found, wanted, rtol=2e-6)
    assert factor == pytest.approx(wanted_factor, rel=1e-6)


def test_a_bundle_stores_them_in_float32_for_the_trained_length() -> None:
    for scaling in RULES.values():
        config = make_tiny_config(rope_scaling=scaling)
        wanted, factor = compute_inverse_frequencies(config, config.max_position_embeddings)
        stored, stored_factor = compute_rope(config)
        assert stored.dtype == np.float32
        assert np.array_equal(stored, wanted.astype(np.float32))
        assert stored_factor == factor


def test_tables_go_on_where_they_stopped() -> None:
    config = make_tiny_config(rope_scaling=RULES["yarn"])
    whole = compute_rope_tables(config, 0, 50)
    for first, part in ((0, 20), (20, 30)):
        for found, wanted in zip(compute_rope_tables(config, first, part), whole, strict=True):
            assert np.array_equal(found, wanted[first : first + part])
    np.testing.assert_allclose(whole[0] ** 2 + whole[1] ** 2, (0.1 * np.log(4.0) + 1.0) ** 2)


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
