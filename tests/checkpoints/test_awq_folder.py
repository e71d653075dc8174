from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgeawq.checkpoints.awq_folder import GRIDS_FILE, AwqFolder
from edgeawq.checkpoints.grid import dequantize
from edgeawq.checkpoints.open_model import open_model
from edgeawq.errors import CheckpointError, UnsafeFileError, UnsupportedModelError
from tests.checkpoints.awq_folders import make_awq_folder, write_model
from tests.tiny_models import make_tiny_model

UP = "model.layers.1.mlp.up_proj"


def edit_tensors(folder: Path, change, file: str = "model.safetensors", metadata=None) -> None:
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, metadata=metadata or {"format": "pt"})


def edit_quantization(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def assert_same_grid(found, expected) -> None:
    assert (found.bits, found.group_size) == (expected.bits, expected.group_size)
    for part in ("q", "scales", "zeros"):
        assert np.array_equal(getattr(found, part), getattr(expected, part)), part
        assert getattr(found, part).dtype == getattr(expected, part).dtype


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"tie": False},
        {"head_bits": 4, "group_size": 32},
        {"attention_bias": True, "tie": False, "n_layers": 1},
        {"hidden": 96, "intermediate": 160, "n_heads": 3, "n_kv_heads": 1, "group_size": 32},
    ],
)
def test_every_grid_comes_back_bit_for_bit(tmp_path, shape):
    model = make_awq_folder(tmp_path / "m", 11, **shape)
    opened = open_model(str(tmp_path / "m"))
    assert isinstance(opened, AwqFolder)
    assert opened.config == model.config
    assert opened.tokenizer == model.tokenizer
    assert opened.generation_defaults == model.generation_defaults
    assert opened.quantization == model.quantization
    assert set(opened.tensor_names()) == set(model.tensors)
    for name, values in model.tensors.items():
        module = name.removesuffix(".weight")
        grid = opened.quantized_linear(module)
        if module in model.grids:
            assert_same_grid(grid, model.grids[module])
            assert np.array_equal(opened.tensor(name), values)
        else:
            assert grid is None
            assert np.array_equal(opened.tensor(name), values.astype(np.float16).astype(np.float32))
    assert opened.quantized_linear("model.layers.99.mlp.up_proj") is None
    with pytest.raises(CheckpointError, match="no tensor"):
        opened.tensor("model.layers.99.mlp.up_proj.weight")


def test_a_foreign_checkpoint_has_a_float_head(tmp_path):
    model = make_awq_folder(tmp_path / "m", 12, head_bits=None)
    assert not (tmp_path / "m" / GRIDS_FILE).exists()
    opened = open_model(str(tmp_path / "m"))
    assert opened.quantized_linear("model.embed_tokens") is None
    embedding = model.tensors["model.embed_tokens.weight"]
    assert np.array_equal(opened.tensor("model.embed_tokens.weight"), embedding.astype(np.float16).astype(np.float32))


def test_modules_that_were_not_converted_stay_float(tmp_path):
    model = make_awq_folder(tmp_path / "m", 13)

    def change(tensors):
        for part in ("qweight", "qzeros", "scales"):
            del tensors[f"{UP}.{part}"]
        tensors[f"{UP}.weight"] = dequantize(model.grids[UP]).astype(np.float16)

    edit_tensors(tmp_path / "m", change)
    edit_quantization(tmp_path / "m", modules_to_not_convert=[UP])
    opened = open_model(str(tmp_path / "m"))
    assert opened.quantized_linear(UP) is None
    assert opened.quantization.modules_to_not_convert == (UP,)
    assert np.allclose(opened.tensor(f"{UP}.weight"), dequantize(model.grids[UP]), rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{UP}.scales"), r"up_proj\.scales is missing"),
        (lambda t: t.pop(f"{UP}.qweight"), r"up_proj\.weight is missing"),
        (lambda t: t.update({f"{UP}.qzeros": np.zeros((2, 40), np.int32)}), r"qzeros has shape \[2, 40\].*\[3, 40\]"),
        (lambda t: t.update({f"{UP}.scales": t[f"{UP}.scales"].astype(np.float32)}), "scales is stored as F32.* F16"),
        (lambda t: t.update({f"{UP}.g_idx": np.zeros(4, np.int32)}), "g_idx has no place"),
        (lambda t: t.update({"model.norm.weight": np.ones(192, np.int32)}), "model.norm.weight is stored as I32"),
    ],
)
def test_wrong_tensors_are_found_on_opening(tmp_path, change, words):
    make_awq_folder(tmp_path / "m", 14)
    edit_tensors(tmp_path / "m", change)
    with pytest.raises(CheckpointError, match=words):
        open_model(str(tmp_path / "m"))


def test_scales_that_are_not_finite_are_named(tmp_path):
    make_awq_folder(tmp_path / "m", 14)
    edit_tensors(tmp_path / "m", lambda t: t[f"{UP}.scales"].__setitem__((0, 3), np.nan))
    opened = open_model(str(tmp_path / "m"))
    with pytest.raises(CheckpointError, match=f"1 scales of {UP} are not finite"):
        opened.tensor(f"{UP}.weight")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "gemv"}, "'gemv'"),
        ({"version": "marlin"}, "'marlin'"),
        ({"bits": 3}, "3 bits"),
        ({"zero_point": False}, "without zero points"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": None}, "None"),
        ({"group_size": 0}, "size of 0"),
    ],
)
def test_other_formats_are_refused(tmp_path, changes, words):
    make_awq_folder(tmp_path / "m", 14)
    edit_quantization(tmp_path / "m", **changes)
    with pytest.raises(UnsupportedModelError, match=words):
        open_model(str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"group_size": 128}, "groups of 128"),
        ({"group_size": 32}, "shape"),
        ({"bits": "four"}, "bits is 'four'"),
        ({"modules_to_not_convert": "lm_head"}, "a list is needed"),
    ],
)
def test_settings_that_do_not_fit_the_tensors(tmp_path, changes, words):
    make_awq_folder(tmp_path / "m", 14)
    edit_quantization(tmp_path / "m", **changes)
    with pytest.raises(CheckpointError, match=words):
        open_model(str(tmp_path / "m"))


def test_a_side_file_of_other_weights_is_found(tmp_path):
    make_awq_folder(tmp_path / "m", 15)
    make_awq_folder(tmp_path / "other", 16)
    (tmp_path / "m" / GRIDS_FILE).write_bytes((tmp_path / "other" / GRIDS_FILE).read_bytes())
    opened = open_model(str(tmp_path / "m"))
    with pytest.raises(CheckpointError, match="does not belong to the weights") as caught:
        opened.quantized_linear("model.embed_tokens")
    assert GRIDS_FILE in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        (lambda t: None, {"bits": 8, "group_size": 48}, "zeros|scales"),
        (lambda t: None, {"bits": 8, "group_size": 50}, "groups of 50 does not fit"),
        (lambda t: None, {"bits": 99, "group_size": 64}, "99 bits"),
        (lambda t: None, {"bits": 8}, "group_size is missing"),
        (lambda t: None, "x", "not JSON"),
        (lambda t: None, [], "not a JSON object"),
        (lambda t: t.pop("model.embed_tokens.q"), {"bits": 8, "group_size": 64}, r"embed_tokens\.q is not U8"),
        (
            lambda t: t.update({"model.embed_tokens.zeros": np.zeros((2, 2), np.uint8)}),
            {"bits": 8, "group_size": 64},
            r"embed_tokens\.zeros is not U8 of shape \[320, 3\]",
        ),
    ],
)
def test_a_damaged_side_file_is_found_on_opening(tmp_path, change, settings, words):
    make_awq_folder(tmp_path / "m", 15)
    text = settings if isinstance(settings, str) else json.dumps(settings)
    edit_tensors(tmp_path / "m", change, GRIDS_FILE, {"model.embed_tokens": text})
    with pytest.raises(CheckpointError, match=words):
        open_model(str(tmp_path / "m"))


def test_values_beyond_the_named_bits_are_found(tmp_path):
    make_awq_folder(tmp_path / "m", 15)
    edit_tensors(
        tmp_path / "m", lambda t: None, GRIDS_FILE, {"model.embed_tokens": json.dumps({"bits": 4, "group_size": 64})}
    )
    with pytest.raises(CheckpointError, match="beyond 4 bits"):
        open_model(str(tmp_path / "m")).tensor("model.embed_tokens.weight")


def test_missing_and_unsafe_shards(tmp_path):
    write_model(tmp_path / "m", make_tiny_model(17), shard_bytes=100_000)
    index_path = tmp_path / "m" / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    first = index["weight_map"]["model.norm.weight"]
    (tmp_path / "m" / first).rename(tmp_path / "moved.safetensors")
    with pytest.raises(CheckpointError, match=first):
        open_model(str(tmp_path / "m"))
    index["weight_map"]["model.norm.weight"] = "../moved.safetensors"
    index_path.write_text(json.dumps(index))
    with pytest.raises(UnsafeFileError, match="moved"):
        open_model(str(tmp_path / "m"))


def test_a_checkpoint_can_be_written_again_from_what_was_read(tmp_path):
    make_awq_folder(tmp_path / "first", 18, tie=False)
    opened = open_model(str(tmp_path / "first"))
    model = make_tiny_model(0)
    model.config, model.tokenizer = opened.config, opened.tokenizer
    model.generation_defaults, model.quantization = opened.generation_defaults, opened.quantization
    model.tensors = {name: opened.tensor(name) for name in opened.tensor_names()}
    grids = {
        name.removesuffix(".weight"): opened.quantized_linear(name.removesuffix(".weight")) for name in model.tensors
    }
    model.grids = {module: grid for module, grid in grids.items() if grid is not None}
    write_model(tmp_path / "second", model, source_config=opened.config.extra)
    first = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    second = {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}
    assert {k: v for k, v in first.items() if k != "config.json"} == {
        k: v for k, v in second.items() if k != "config.json"
    }
    assert json.loads(first["config.json"]) == json.loads(second["config.json"])
