from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from edgeawq.checkpoints.gptq_v2 import (
    GPTQ_BITS,
    pack_linear_gptq,
    pack_stream,
    read_grid_shape,
    unpack_linear_gptq,
    unpack_stream,
)
from edgeawq.checkpoints.grid import dequantize, quantize_rtn
from edgeawq.checkpoints.model import QuantizationConfig, QuantizedLinear
from edgeawq.checkpoints.open_model import open_model
from edgeawq.checkpoints.write_awq import describe_overrides, write_awq_checkpoint
from edgeawq.errors import CheckpointError, UnsupportedModelError
from tests.quantize.runs import is_same_grid
from tests.tiny_models import hf_config, linear_shapes, make_tiny_model

SHAPE: dict[str, Any] = {"hidden": 64, "intermediate": 96, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16}
DOWN, UP = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj"


def unpack_slowly(words: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.uint8]:
    """Bit by bit, from the format's description: one long little-endian number for every column."""
    columns = []
    for column in words.T:
        number = int.from_bytes(column.astype("<i4").tobytes(), "little")
        count = len(column) * 32 // bits
        columns.append([number >> bits * k & (1 << bits) - 1 for k in range(count)])
    return np.array(columns, np.uint8).T


@pytest.mark.parametrize("bits", GPTQ_BITS)
@pytest.mark.parametrize(("count", "columns"), [(32, 1), (64, 5), (192, 40)])
def test_values_lie_in_a_stream_of_bits(bits: int, count: int, columns: int) -> None:
    values = np.random.default_rng(count + bits).integers(0, 1 << bits, (count, columns), dtype=np.uint8)
    words = pack_stream(values, bits)
    assert words.shape == (count * bits // 32, columns)
    assert np.array_equal(unpack_slowly(words, bits), values)
    assert np.array_equal(unpack_stream(words, bits), values)


def test_the_eleventh_value_of_three_bits_crosses_a_word() -> None:
    values = np.zeros((32, 1), np.uint8)
    values[10] = 0b101
    assert pack_stream(values, 3)[:, 0].astype(np.uint32).tolist() == [0b01 << 30, 1, 0]


@pytest.mark.parametrize("bits", GPTQ_BITS)
@pytest.mark.parametrize("group_size", [32, 64, 192])
def test_a_layer_comes_back_bit_for_bit(bits: int, group_size: int) -> None:
    weight = np.random.default_rng(bits).standard_normal((96, 192)).astype(np.float32)
    weight[:, :32] = np.abs(weight[:, :32])  # zero points of 0
    linear = quantize_rtn(weight, bits, group_size)
    parts: dict[str, Any] = pack_linear_gptq(linear)
    assert parts["qweight"].shape == (192 * bits // 32, 96)
    assert parts["qzeros"].shape == (192 // group_size, 96 * bits // 32)
    assert parts["g_idx"].tolist() == [column // group_size for column in range(192)]
    found = unpack_linear_gptq(parts["qweight"], parts["qzeros"], parts["scales"], bits, group_size)
    assert is_same_grid(found, linear)
    assert read_grid_shape("x", (96, 192), parts["qweight"].shape, parts["scales"].shape) == (bits, group_size)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(CheckpointError, match="packs values by 32"):
        pack_stream(np.zeros((40, 2), np.uint8), 4)
    with pytest.raises(CheckpointError, match="holds the value 9"):
        pack_stream(np.full((32, 2), 9, np.uint8), 3)
    with pytest.raises(CheckpointError, match="not of 5"):
        pack_linear_gptq(quantize_rtn(np.ones((32, 32), np.float32), 5, 32))
    with pytest.raises(CheckpointError, match="no grid"):
        read_grid_shape("x", (32, 64), (10, 32), (1, 32))


def write_folder(folder: Path, bits: int = 3, group_size: int = 32, **layer_bits: int) -> dict[str, QuantizedLinear]:
    """A checkpoint of a tiny model; layer_bits by "layer_kind", such as "0_down_proj"."""
    model = make_tiny_model(bits, quantized=False, **SHAPE)
    overrides: dict[str, int] = {}
    grids = {}
    for module in linear_shapes(model.config):
        weight = model.tensors[f"{module}.weight"]
        key = f"{module.split('.')[2]}_{module.rpartition('.')[2]}"
        own = layer_bits.get(key, bits)
        if own != bits:
            overrides[module] = own
        grids[module] = quantize_rtn(weight, own, weight.shape[1] if group_size < 0 else group_size)
    write_awq_checkpoint(
        folder,
        config=model.config,
        tokenizer=model.tokenizer,
        generation_defaults={},
        quantization=QuantizationConfig(bits, group_size, True, "gptq_v2", layer_bits=overrides),
        tensors=[(name, tensor) for name, tensor in model.tensors.items() if name.removesuffix(".weight") not in grids],
        linears=grids.items(),
        grids={},
        source_config=hf_config(model.config),
        extra_files={},
    )
    return grids


@pytest.mark.parametrize("bits", GPTQ_BITS)
@pytest.mark.parametrize("group_size", [32, -1])
def test_a_folder_comes_back_bit_for_bit(tmp_path: Path, bits: int, group_size: int) -> None:
    grids = write_folder(tmp_path / "m", bits, group_size, **{"0_down_proj": 8, "1_q_proj": 2})
    opened = open_model(str(tmp_path / "m"))
    assert opened.quantization is not None
    assert opened.quantization.version == "gptq_v2"
    assert (opened.quantization.bits, opened.quantization.group_size) == (bits, group_size)
    assert set(opened.quantization.all_bits) == {bits, 2, 8}
    for module, grid in grids.items():
        found = opened.quantized_linear(module)
        assert found is not None
        assert is_same_grid(found, grid), module
        assert np.array_equal(opened.tensor(f"{module}.weight"), dequantize(grid))
    described = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert described["quant_method"] == "gptq"
    assert (described["bits"], described["group_size"], described["desc_act"]) == (bits, group_size, False)


def test_patterns_of_layers_that_differ_match_those_and_no_others() -> None:
    kinds = ("mlp.down_proj", "mlp.up_proj", "self_attn.q_proj")
    modules = [f"model.layers.{layer}.{kind}" for layer in range(12) for kind in kinds]
    chosen = {module: 4 if "down" in module else 8 for module in modules[::5]}
    dynamic = describe_overrides(QuantizationConfig(3, 64, True, "gptq_v2", layer_bits=chosen))
    for module in modules:
        found = [entry for pattern, entry in dynamic.items() if re.match(pattern.removeprefix("+:"), module)]
        assert found == ([{"bits": chosen[module]}] if module in chosen else []), module


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint_format": "gptq"}, "format 'gptq' with 3 bits"),
        ({"bits": 5}, "5 bits"),
        ({"group_size": 0}, "size of 0"),
    ],
)
def test_other_versions_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write_folder(tmp_path / "m")
    edit(tmp_path / "m", **changes)
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        open_model(str(tmp_path / "m"))
    assert caught.value.remedy


def change(folder: Path, name: str, value: npt.NDArray[Any] | None) -> None:
    """Replace a stored tensor, or take it out."""
    tensors = load_file(folder / "model.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_without_g_idx_is_read_and_a_shuffled_one_is_not(tmp_path: Path) -> None:
    grids = write_folder(tmp_path / "m")
    change(tmp_path / "m", f"{DOWN}.g_idx", None)
    found = open_model(str(tmp_path / "m")).quantized_linear(DOWN)
    assert found is not None
    assert is_same_grid(found, grids[DOWN])
    change(tmp_path / "m", f"{UP}.g_idx", np.arange(64, dtype=np.int32)[::-1].copy() // 32)
    with pytest.raises(UnsupportedModelError, match="act-order"):
        open_model(str(tmp_path / "m")).quantized_linear(UP)


@pytest.mark.parametrize(
    ("part", "shape", "dtype"),
    [
        ("qweight", (7, 64), np.int32),
        ("qweight", (9, 64), np.int64),
        ("qzeros", (3, 7), np.int32),
        ("scales", (3, 63), np.float16),
        ("scales", (0, 64), np.float16),
        ("g_idx", (95,), np.int32),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, part: str, shape: tuple[int, ...], dtype: type[np.generic]
) -> None:
    write_folder(tmp_path / "m")
    change(tmp_path / "m", f"{DOWN}.{part}", np.zeros(shape, dtype))
    with pytest.raises(CheckpointError, match=re.escape(DOWN)):
        open_model(str(tmp_path / "m"))
