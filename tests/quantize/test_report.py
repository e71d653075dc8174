from __future__ import annotations

import json

import pytest

from edgeawq.checkpoints.tensor_shapes import list_linear_shapes
from edgeawq.quantize.block import BlockOutcome, LayerOutcome
from edgeawq.quantize.report import CalibrationReport, QuantizationReport, count_bits_per_weight, round_floats
from edgeawq.quantize.settings import QuantizeSettings
from tests.tiny_models import make_tiny_config


def make_report() -> QuantizationReport:
    layer = LayerOutcome(4, 0.0123456789, 1 / 3, 0.5, 0.25, 0.875)
    blocks = tuple(BlockOutcome(0.2, 0.1 + number, number > 0, {"mlp.up_proj": layer}) for number in range(3))
    return QuantizationReport(
        model="tiny-ü",
        settings=QuantizeSettings(),
        group_size=64,
        head_group_size=None,
        calibration=CalibrationReport("self-generated", 2, 512, 8, 64),
        blocks=blocks,
        evaluation=None,
        bits_per_weight=4.3125,
        notes=("group size 64 instead of 128",),
    )


def test_the_file_holds_what_was_decided() -> None:
    content = make_report().to_json()
    assert "tiny-ü".encode() in content
    found = json.loads(content)
    assert found["format"] == 1
    assert found["reverted_blocks"] == [1, 2]
    assert found["group_size"] == 64
    assert found["settings"]["group_size"] == 128
    assert found["head_group_size"] is None
    assert found["calibration"]["n_tokens"] == 512
    assert found["blocks"][0]["layers"]["mlp.up_proj"]["error"] == 0.3333333
    assert found["notes"] == ["group size 64 instead of 128"]


def test_floats_are_rounded_everywhere_and_nothing_else() -> None:
    value = {"a": [1 / 3, (2 / 3, 7)], "b": "0.123456789", "c": None, "d": True}
    assert round_floats(value) == {"a": [0.3333333, [0.6666667, 7]], "b": "0.123456789", "c": None, "d": True}


@pytest.mark.parametrize(("group_size", "bits"), [(128, 4.15625), (64, 4.3125), (32, 4.625)])
def test_bits_per_weight_count_scale_and_zero(group_size: int, bits: float) -> None:
    config = make_tiny_config(hidden=256, intermediate=512, n_heads=4, n_kv_heads=2, head_dim=64)
    alike = dict.fromkeys(list_linear_shapes(config), 4)
    assert count_bits_per_weight(config, alike, group_size) == bits
    mixed = {module: 8 if ".mlp." in module else 4 for module in alike}
    share = 3 * 256 * 512 / (3 * 256 * 512 + 2 * 256 * 256 + 2 * 256 * 128)
    assert count_bits_per_weight(config, mixed, group_size) == pytest.approx(bits + share * (4 + 4 / group_size))


def test_whole_rows_count_one_scale_each() -> None:
    config = make_tiny_config(hidden=128, intermediate=128, n_heads=2, n_kv_heads=2, head_dim=64)
    layer_bits = dict.fromkeys(list_linear_shapes(config), 3)
    assert count_bits_per_weight(config, layer_bits, -1) == 3 + 19 / 128
