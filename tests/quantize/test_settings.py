from __future__ import annotations

from typing import Any

import pytest

from edgeawq.errors import QuantizationError, UsageError
from edgeawq.quantize.grid import GridFormat
from edgeawq.quantize.settings import (
    QuantizeSettings,
    choose_forms,
    choose_group_size,
    choose_head_group_size,
    choose_layer_bits,
    explain_group_size,
)
from tests.tiny_models import make_tiny_config

BAD = [
    ({"method": "squeeze"}, "squeeze"),
    ({"bits": 5}, "5 bits"),
    ({"bits_for": (("down_proj", 6),)}, "6 bits"),
    ({"bits_for": (("down_proj(", 4),)}, "regular expression"),
    ({"act_order": True}, "--act-order has no meaning with --method awq"),
    ({"rounding_steps": 0}, "0 rounding steps"),
    ({"head_bits": 5}, "5 bits"),
    ({"group_size": 16}, "16"),
    ({"group_size": 0}, "0"),
    ({"group_size": -128}, "-128"),
    ({"seqlen": 8}, "8 tokens"),
    ({"calibration_tokens": 100}, "100"),
    ({"seed": -1}, "-1"),
    ({"seed": 1 << 32}, str(1 << 32)),
]


@pytest.mark.parametrize(("changes", "named"), BAD)
def test_values_that_make_no_sense_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        QuantizeSettings(**changes)
    assert caught.value.remedy or "between" in str(caught.value)


# hidden, intermediate, heads, head_dim, asked for → taken
SIZES = [
    (96, 192, 3, 32, 128, 32),
    (192, 384, 6, 32, 128, 64),
    (192, 320, 6, 32, 128, 64),
    (192, 320, 6, 32, 32, 32),
    (256, 512, 4, 64, 128, 128),
    (256, 512, 4, 64, 100, 64),
    (256, 512, 4, 64, 1 << 20, 256),
    (256, 256, 6, 16, 128, 32),  # attention's width, 96, counts too
]


@pytest.mark.parametrize(("hidden", "intermediate", "heads", "head_dim", "wanted", "size"), SIZES)
def test_group_size_is_the_largest_that_fits(
    hidden: int, intermediate: int, heads: int, head_dim: int, wanted: int, size: int
) -> None:
    config = make_tiny_config(
        hidden=hidden, intermediate=intermediate, n_heads=heads, n_kv_heads=heads, head_dim=head_dim
    )
    assert choose_group_size(config, wanted) == size
    explanation = explain_group_size(config, wanted, size)
    if size == wanted:
        assert explanation is None
    else:
        assert explanation is not None
        assert f"group size {size} instead of {wanted}" in explanation


def test_the_reason_names_the_width() -> None:
    config = make_tiny_config(hidden=96, intermediate=256, n_heads=3, n_kv_heads=1, head_dim=32)
    assert explain_group_size(config, 128, 32) == "group size 32 instead of 128: 128 does not divide 96"
    config = make_tiny_config(hidden=192, intermediate=384)
    assert explain_group_size(config, 96, 64) == "group size 64 instead of 96: 96 is not a power of two"


def test_widths_without_a_group_are_refused() -> None:
    config = make_tiny_config(hidden=48, intermediate=96, n_heads=3, n_kv_heads=3, head_dim=16)
    with pytest.raises(QuantizationError, match="width 48 .*groups of 16 at most") as caught:
        choose_group_size(config, 128)
    assert caught.value.remedy


def test_patterns_choose_bits_and_the_last_that_matches_counts() -> None:
    config = make_tiny_config(n_layers=3)
    settings = QuantizeSettings(bits=3, bits_for=(("down_proj", 4), (r"layers\.2\.", 8)))
    bits = choose_layer_bits(config, settings)
    assert len(bits) == 3 * 7
    assert bits["model.layers.0.mlp.down_proj"] == 4
    assert bits["model.layers.2.mlp.down_proj"] == bits["model.layers.2.self_attn.q_proj"] == 8
    assert bits["model.layers.1.self_attn.q_proj"] == 3
    forms = choose_forms(1, bits, config, settings, 64)
    assert forms["mlp.down_proj"] == GridFormat(4, 64)
    assert forms["mlp.up_proj"] == GridFormat(3, 64)
    assert choose_forms(0, bits, config, settings, -1)["mlp.down_proj"] == GridFormat(4, config.intermediate_size)
    with pytest.raises(UsageError, match="no layer's name holds 'attention'"):
        choose_layer_bits(config, QuantizeSettings(bits_for=(("attention", 4),)))


def test_whole_rows_are_always_possible_where_groups_are() -> None:
    config = make_tiny_config(hidden=96, intermediate=160, n_heads=3, n_kv_heads=1, head_dim=32)
    assert choose_group_size(config, -1) == -1
    assert explain_group_size(config, -1, -1) is None
    assert choose_head_group_size(config, -1) == 32
    assert choose_head_group_size(config, 64) == 64


def test_outputs_that_cannot_be_packed_are_refused() -> None:
    config = make_tiny_config(hidden=64, intermediate=128, n_heads=16, n_kv_heads=1, head_dim=4)
    with pytest.raises(QuantizationError, match="k_proj has 4 outputs"):
        choose_group_size(config, 32)
