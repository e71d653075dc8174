from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgeawq.checkpoints.weight_files import WeightFiles
from edgeawq.errors import CheckpointError, UnsafeFileError
from tests.tiny_models import make_tiny_hf_checkpoint, make_tiny_model

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path) -> Path:
    return make_tiny_hf_checkpoint(tmp_path / "sharded", 4, shards=3)


def edit_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_tensors_of_all_shards(sharded):
    model = make_tiny_model(4, quantized=False)
    files = WeightFiles(sharded)
    assert set(files.tensors) == set(model.tensors)
    for name, values in model.tensors.items():
        assert np.array_equal(files.read_float(name), values)
        assert np.array_equal(files.read_stored(name), values)
    with pytest.raises(CheckpointError, match="no tensor nothing"):
        files.read_float("nothing")


def test_shards_without_their_index(sharded):
    before = set(WeightFiles(sharded).tensors)
    (sharded / INDEX).unlink()
    assert set(WeightFiles(sharded).tensors) == before
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 3 weight files are missing: model-00002-of-00003"):
        WeightFiles(sharded)


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00003-of-00003.safetensors") as caught:
        WeightFiles(sharded)
    assert "incomplete" in caught.value.remedy


def test_a_truncated_shard_names_byte_counts(sharded):
    path = sharded / "model-00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"truncated.*bytes"):
        WeightFiles(sharded)


def test_an_index_that_disagrees_with_the_shards(sharded):
    def move(weight_map):
        name = next(name for name, file in weight_map.items() if file.startswith("model-00001"))
        weight_map[name] = "model-00002-of-00003.safetensors"

    edit_index(sharded, move)
    with pytest.raises(CheckpointError, match="should be in model-00002"):
        WeightFiles(sharded)


def test_an_index_with_a_tensor_that_no_shard_has(sharded):
    edit_index(sharded, lambda weight_map: weight_map.update({"ghost": "model-00001-of-00003.safetensors"}))
    with pytest.raises(CheckpointError, match="ghost"):
        WeightFiles(sharded)


def test_a_tensor_in_two_shards(sharded):
    shutil.copy(sharded / "model-00001-of-00003.safetensors", sharded / "model-00002-of-00003.safetensors")
    (sharded / INDEX).unlink()
    with pytest.raises(CheckpointError, match="is in model-00001-of-00003.safetensors and in model-00002"):
        WeightFiles(sharded)


@pytest.mark.parametrize(
    "name",
    [
        "../model-00001-of-00003.safetensors",
        "/etc/passwd.safetensors",
        "sub/x.safetensors",
        "..",
        ".hidden.safetensors",
        "a\\b.safetensors",
        "x\0.safetensors",
    ],
)
def test_names_that_leave_the_folder_are_refused(sharded, name):
    shutil.copy(sharded / "model-00001-of-00003.safetensors", sharded.parent / "model-00001-of-00003.safetensors")
    edit_index(sharded, lambda weight_map: weight_map.update(dict.fromkeys(list(weight_map)[:1], name)))
    with pytest.raises(UnsafeFileError, match="outside its own folder"):
        WeightFiles(sharded)


def test_an_index_of_pickles_or_of_nothing(sharded):
    edit_index(sharded, lambda weight_map: weight_map.update({"x": "pytorch_model.bin"}))
    with pytest.raises(UnsafeFileError, match=r"pytorch_model\.bin"):
        WeightFiles(sharded)
    edit_index(sharded, lambda weight_map: weight_map.update({"x": "weights.npz"}))
    with pytest.raises(CheckpointError, match=r"weights\.npz"):
        WeightFiles(sharded)
    (sharded / INDEX).write_text('{"metadata": {}}')
    with pytest.raises(CheckpointError, match="no weight_map"):
        WeightFiles(sharded)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "x.pth", "a.ckpt"]
)
def test_a_folder_of_pickles_is_refused_with_the_command(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(UnsafeFileError, match="pickle") as caught:
        WeightFiles(tmp_path)
    assert "save_pretrained" in caught.value.remedy


def test_safetensors_beside_a_pickle_are_read(tmp_path):
    make_tiny_hf_checkpoint(tmp_path, 1)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert WeightFiles(tmp_path).tensors


def test_one_file_of_another_name_is_taken_and_several_are_not(tmp_path):
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "weights.safetensors")
    assert set(WeightFiles(tmp_path).tensors) == {"a"}
    save_file({"b": np.ones(3, np.float32)}, tmp_path / "more.safetensors")
    with pytest.raises(CheckpointError, match="more.safetensors, weights.safetensors"):
        WeightFiles(tmp_path)


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "training_args.bin").write_bytes(b"x")  # saved beside many models, and no weights
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors") as caught:
        WeightFiles(tmp_path)
    assert not isinstance(caught.value, UnsafeFileError)
