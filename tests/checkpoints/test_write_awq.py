from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from edgeawq.checkpoints import write_awq
from edgeawq.checkpoints.config import RopeScaling
from edgeawq.checkpoints.grid import dequantize, quantize_rtn
from edgeawq.checkpoints.open_model import open_model
from edgeawq.errors import CheckpointError, UsageError
from tests.checkpoints.awq_folders import make_awq_folder, write_model
from tests.tiny_models import hf_config, linear_shapes, make_tiny_model


def list_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("shape", [{}, {"tie": False}, {"head_bits": None}, {"group_size": 32, "attention_bias": True}])
def test_names_types_and_shapes_are_autoawqs(tmp_path, shape):
    model = make_awq_folder(tmp_path / "m", 1, **shape)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    expected = {}
    group = shape.get("group_size", 64)
    for module, (out_features, in_features) in linear_shapes(model.config).items():
        expected[f"{module}.qweight"] = ("int32", (in_features, out_features // 8))
        expected[f"{module}.qzeros"] = ("int32", (in_features // group, out_features // 8))
        expected[f"{module}.scales"] = ("float16", (in_features // group, out_features))
    for name, values in model.tensors.items():
        if name.removesuffix(".weight") not in linear_shapes(model.config):
            expected[name] = ("float16", values.shape)
    assert {name: (values.dtype.name, values.shape) for name, values in stored.items()} == expected
    with safe_open(tmp_path / "m" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_packed_words_stand_for_the_weights(tmp_path):
    """Unpack with the format's own words, value by value, not with the package's functions."""
    model = make_awq_folder(tmp_path / "m", 2, group_size=32)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    rng = np.random.default_rng(0)
    for module, (out_features, in_features) in linear_shapes(model.config).items():
        for _ in range(20):
            o, i = int(rng.integers(out_features)), int(rng.integers(in_features))
            shift = 4 * order.index(o % 8)
            q = (int(stored[f"{module}.qweight"].view(np.uint32)[i, o // 8]) >> shift) & 15
            zero = (int(stored[f"{module}.qzeros"].view(np.uint32)[i // 32, o // 8]) >> shift) & 15
            weight = (q - zero) * float(stored[f"{module}.scales"][i // 32, o])
            assert weight == pytest.approx(float(model.tensors[f"{module}.weight"][o, i]), abs=1e-7)


def test_the_json_files(tmp_path):
    make_awq_folder(tmp_path / "m", 1)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["quantization_config"] == {
        "quant_method": "awq",
        "zero_point": True,
        "group_size": 64,
        "bits": 4,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    tokenizer = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert "<|im_start|>" in tokenizer["chat_template"]
    assert (tokenizer["bos_token"], tokenizer["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    generation = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2], "temperature": 0.7, "top_k": 40, "do_sample": True}


def test_transformers_reads_config_tokenizer_and_generation_defaults(tmp_path):
    transformers = pytest.importorskip("transformers")
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 256)
    model = make_awq_folder(tmp_path / "m", 1, rope_scaling=scaling, rope_theta=500000.0)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "m")
    assert (config.model_type, config.hidden_size, config.head_dim) == ("llama", 192, 32)
    assert config.rope_parameters["rope_type"] == "llama3"
    assert config.rope_parameters["factor"] == 8.0
    quantization = transformers.AwqConfig.from_dict(dict(config.quantization_config))
    assert (quantization.bits, quantization.group_size, quantization.zero_point) == (4, 64, True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "what is"}], tokenize=False)
    assert text == "<|im_start|>user\nwhat is<|im_end|>\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "m")
    assert (generation.temperature, generation.top_k, generation.do_sample) == (0.7, 40, True)
    assert model.config.rope_scaling == scaling


def test_the_head_is_stored_on_its_grid_and_exactly_beside(tmp_path):
    model = make_awq_folder(tmp_path / "m", 3, tie=False)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    side = load_file(tmp_path / "m" / "edgeawq_grids.safetensors")
    for module in ("model.embed_tokens", "lm_head"):
        grid = model.grids[module]
        assert np.array_equal(stored[f"{module}.weight"], dequantize(grid).astype(np.float16))
        for part, dtype in (("q", np.uint8), ("scales", np.float16), ("zeros", np.uint8)):
            assert side[f"{module}.{part}"].dtype == dtype
            assert np.array_equal(side[f"{module}.{part}"], getattr(grid, part))
    with safe_open(tmp_path / "m" / "edgeawq_grids.safetensors", "np") as file:
        settings = {module: json.loads(text) for module, text in file.metadata().items()}
    assert settings == dict.fromkeys(["model.embed_tokens", "lm_head"], {"bits": 8, "group_size": 64})


def test_a_float_tensor_with_a_grid_is_replaced_by_what_the_grid_stands_for(tmp_path):
    model = make_tiny_model(4)
    embedding = "model.embed_tokens.weight"
    floats = {name: values for name, values in model.tensors.items() if "norm" in name or name == embedding}
    floats[embedding] = floats[embedding] + np.float32(0.25)
    write_model(tmp_path / "m", model, tensors=floats.items())
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert np.array_equal(stored[embedding], dequantize(model.grids["model.embed_tokens"]).astype(np.float16))


@pytest.mark.parametrize("shard_bytes", [10_000, 100_000, 400_000])
def test_shards_hold_the_same_tensors_and_keep_their_limit(tmp_path, shard_bytes):
    model = make_tiny_model(5, tie=False)
    write_model(tmp_path / "whole", model)
    write_model(tmp_path / "shards", model, shard_bytes=shard_bytes)
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    assert len(files) > 1
    assert index["metadata"]["total_size"] == sum(values.nbytes for values in whole.values())
    found = {}
    for file in files:
        tensors = load_file(tmp_path / "shards" / file)
        assert len(tensors) == 1 or sum(values.nbytes for values in tensors.values()) <= shard_bytes
        assert {name for name, place in index["weight_map"].items() if place == file} == set(tensors)
        found |= tensors
    assert set(found) == set(whole)
    assert all(np.array_equal(found[name], whole[name]) for name in whole)
    assert not [name for name in os.listdir(tmp_path / "shards") if name.endswith((".spool", ".unfinished"))]
    assert open_model(str(tmp_path / "shards")).config == model.config


@pytest.mark.parametrize("shard_bytes", [50_000, 10**9])
def test_the_same_input_gives_the_same_bytes(tmp_path, shard_bytes):
    for name in ("one", "two"):
        write_model(tmp_path / name, make_tiny_model(6, tie=False), shard_bytes=shard_bytes)
    assert list_bytes(tmp_path / "one") == list_bytes(tmp_path / "two")


def test_items_are_taken_one_at_a_time(tmp_path):
    model = make_tiny_model(6)
    alive: list[str] = []

    def give(items):
        for name, value in items:
            alive.append(name)
            yield name, value
            # The writer has stored the item before it asks for the next one.
            written = sum(path.stat().st_size for path in tmp_path.rglob("*.spool"))
            assert written > 0

    linears = [(name, grid) for name, grid in model.grids.items() if name.startswith("model.layers.")]
    write_model(tmp_path / "m", model, linears=give(linears))
    assert alive == [name for name, _ in linears]


def test_nothing_is_left_where_a_source_fails_midway(tmp_path):
    model = make_tiny_model(6)

    def give():
        yield "model.norm.weight", model.tensors["model.norm.weight"]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_model(tmp_path / "m", model, tensors=give())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_else_is_never_touched(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="not written by edgeawq"):
            write_model(tmp_path / "m", make_tiny_model(1), overwrite=overwrite)
    assert list_bytes(tmp_path / "m") == {"thesis.txt": b"years of work"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="not a folder"):
        write_model(tmp_path / "file", make_tiny_model(1))


def test_an_own_checkpoint_is_replaced_only_when_allowed(tmp_path):
    write_model(tmp_path / "m", make_tiny_model(1), extra_files={"old.txt": b"old"})
    before = list_bytes(tmp_path / "m")
    with pytest.raises(UsageError, match="already holds a checkpoint"):
        write_model(tmp_path / "m", make_tiny_model(2))
    assert list_bytes(tmp_path / "m") == before
    # A failure midway leaves the earlier one as it was.
    with pytest.raises(CheckpointError):
        write_model(tmp_path / "m", make_tiny_model(2), tensors=[], overwrite=True)
    assert list_bytes(tmp_path / "m") == before
    write_model(tmp_path / "m", make_tiny_model(2), overwrite=True)
    write_model(tmp_path / "fresh", make_tiny_model(2))
    assert list_bytes(tmp_path / "m") == list_bytes(tmp_path / "fresh")
    assert sorted(os.listdir(tmp_path)) == ["fresh", "m"]


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    write_model(tmp_path / "empty", make_tiny_model(1))
    write_model(tmp_path / "a" / "b" / "c", make_tiny_model(1))
    assert list_bytes(tmp_path / "empty") == list_bytes(tmp_path / "a" / "b" / "c")


def test_the_sources_other_fields_stay(tmp_path):
    model = make_tiny_model(1)
    source = hf_config(model.config) | {
        "pretraining_tp": 1,
        "_name_or_path": "/home/someone",
        "torch_dtype": "bfloat16",
    }
    write_model(tmp_path / "m", model, source_config=source)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["pretraining_tp"] == 1
    assert config["torch_dtype"] == "float16"
    assert "_name_or_path" not in config


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("config.json", UsageError),
        ("model.safetensors", UsageError),
        ("../x", UsageError),
        ("a/b", UsageError),
        (".x", UsageError),
        ("", UsageError),
    ],
)
def test_extra_files_cannot_leave_the_folder_or_replace_its_own(tmp_path, name, error):
    with pytest.raises(error, match="extra file"):
        write_model(tmp_path / "m", make_tiny_model(1), extra_files={name: b""})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: {"tensors": []}, "is missing"),
        (lambda m: {"tensors": [("model.norm.weight", m.tensors["model.norm.weight"])] * 2}, "given twice"),
        (lambda m: {"tensors": [("model.norm.weight", np.full(192, 1e6, np.float32))]}, "1e\\+06.*65504"),
        (lambda m: {"tensors": [("model.norm.weight", np.full(192, np.nan, np.float32))]}, "nan"),
        (lambda m: {"tensors": [("model.embed_tokens.weight", np.zeros((3, 4), np.float32))]}, r"shape \[3, 4\]"),
        (lambda m: {"quantization": replace(m.quantization, group_size=32)}, "groups of 64; the checkpoint says"),
        (lambda m: {"config": replace(m.config, hidden_size=200)}, "groups of|shape"),
        (
            lambda m: {"linears": [("model.layers.0.mlp.up_proj", quantize_rtn(np.ones((8, 64), np.float32), 8, 64))]},
            "8 bits",
        ),
    ],
)
def test_what_does_not_fit_is_found_before_the_folder_appears(tmp_path, change, words):
    model = make_tiny_model(1)
    with pytest.raises(CheckpointError, match=words):
        write_model(tmp_path / "m", model, **change(model))
    assert list(tmp_path.iterdir()) == []


def test_scales_that_are_not_finite_are_refused(tmp_path):
    model = make_tiny_model(1)
    module = "model.layers.0.mlp.up_proj"
    model.grids[module] = replace(model.grids[module], scales=np.full_like(model.grids[module].scales, np.nan))
    with pytest.raises(CheckpointError, match="not finite"):
        write_model(tmp_path / "m", model)


def test_a_full_disk_is_a_clear_error(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write_awq, "write_grids", fail)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        write_model(tmp_path / "m", make_tiny_model(1))
    assert "free space" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []
