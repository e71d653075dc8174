from __future__ import annotations

import numpy as np
import pytest

from edgeawq.checkpoints.config import RopeScaling
from edgeawq.errors import UnsupportedModelError
from edgeawq.quantize.rope import compute_inverse_frequencies, compute_rope_tables
from tests.tiny_models import make_tiny_config

RULES = {
    "default": None,
    "linear": RopeScaling("linear", factor=3.0),
    "dynamic": RopeScaling("dynamic", factor=4.0, original_max_position_embeddings=256),
    "llama3": RopeScaling("llama3", 8.0, 1.0, 4.0, original_max_position_embeddings=64),
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


def test_tables_go_on_where_they_stopped() -> None:
    config = make_tiny_config(rope_scaling=RULES["yarn"])
    whole = compute_rope_tables(config, 0, 50)
    for first, part in ((0, 20), (20, 30)):
        for found, wanted in zip(compute_rope_tables(config, first, part), whole, strict=True):
            assert np.array_equal(found, wanted[first : first + part])
    np.testing.assert_allclose(whole[0] ** 2 + whole[1] ** 2, (0.1 * np.log(4.0) + 1.0) ** 2)


def test_an_unknown_rule_is_refused() -> None:
    config = make_tiny_config(rope_scaling=RopeScaling("longrope", factor=4.0))
    with pytest.raises(UnsupportedModelError, match="longrope") as caught:
        compute_inverse_frequencies(config, 10)
    assert caught.value.remedy
