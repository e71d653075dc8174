from __future__ import annotations

import pytest

from edgeawq.checkpoints.awq_folder import AwqFolder
from edgeawq.checkpoints.gguf_file import GgufCheckpoint
from edgeawq.checkpoints.hf_folder import HfFolder
from edgeawq.checkpoints.open_model import open_model
from edgeawq.errors import CheckpointError, UnsafeFileError, UsageError
from tests.checkpoints.awq_folders import make_awq_folder
from tests.checkpoints.gguf_files import make_gguf
from tests.tiny_models import make_tiny_hf_checkpoint


def test_each_kind_is_recognized(tmp_path, monkeypatch):
    make_tiny_hf_checkpoint(tmp_path / "float", 1)
    make_awq_folder(tmp_path / "awq", 1)
    make_gguf(tmp_path / "m.gguf", 1)
    make_gguf(tmp_path / "blob-without-suffix", 1)
    assert isinstance(open_model(str(tmp_path / "float")), HfFolder)
    assert isinstance(open_model(str(tmp_path / "awq") + "/"), AwqFolder)
    assert isinstance(open_model(str(tmp_path / "m.gguf")), GgufCheckpoint)
    assert isinstance(open_model(str(tmp_path / "blob-without-suffix")), GgufCheckpoint)
    monkeypatch.chdir(tmp_path)
    assert open_model("awq").name == "awq"
    monkeypatch.chdir(tmp_path / "float")
    assert open_model(".").name == "float"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_model("~/float").name == "float"


def test_a_folder_named_like_a_hub_id_wins(tmp_path, monkeypatch):
    make_tiny_hf_checkpoint(tmp_path / "org" / "name", 1)
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_model("org/name"), HfFolder)


@pytest.mark.parametrize(
    ("reference", "suggestion"),
    [
        ("SmolLM2-135M-instruct-awg", "SmolLM2-135M-Instruct-AWQ"),
        ("smollm2-135m-instruct", "embedded:smollm2-135m-instruct"),
        ("./models.ggu", "models.gguf"),
        ("qqqqqqqq", "give a model folder"),
        ("", "give a model folder"),
        ("nowhere/deeper/model.gguf", "give a model folder"),
        ("./org/name", "give a model folder"),
    ],
)
def test_a_name_that_is_nothing_gets_suggestions(tmp_path, monkeypatch, reference, suggestion):
    make_tiny_hf_checkpoint(tmp_path / "SmolLM2-135M-Instruct-AWQ", 1)
    (tmp_path / "models.gguf").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    if reference == "smollm2-135m-instruct":
        (tmp_path / "SmolLM2-135M-Instruct-AWQ").rename(tmp_path / "else")
    with pytest.raises(UsageError, match="there is no model") as caught:
        open_model(reference)
    assert suggestion in caught.value.remedy


def test_a_missing_entry_of_an_existing_folder_is_not_taken_for_a_hub_id(tmp_path, monkeypatch):
    make_tiny_hf_checkpoint(tmp_path / "models" / "llama-tiny", 1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        open_model("models/llama-tiny2")
    assert caught.value.remedy == "did you mean models/llama-tiny?"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.PT", "b.pth", "c.ckpt", "d.pkl"])
def test_a_pickle_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UnsafeFileError, match="pickle") as caught:
        open_model(str(tmp_path / name))
    assert "save_pretrained" in caught.value.remedy


def test_other_files(tmp_path):
    folder = make_tiny_hf_checkpoint(tmp_path / "m", 1)
    with pytest.raises(UsageError) as caught:
        open_model(str(folder / "model.safetensors"))
    assert caught.value.remedy == f"give the folder: {folder}"
    with pytest.raises(CheckpointError, match="neither a GGUF file nor"):
        open_model(str(folder / "config.json"))


@pytest.mark.parametrize(
    ("names", "words", "remedy"),
    [
        (["a.gguf", "readme.md"], "GGUF files", "a.gguf"),
        (["adapter_config.json"], "adapter", "merge"),
        (["manifest.json"], "bundle", "packed from"),
        (["x.txt"], r"no config\.json.*1 entries", "give the folder"),
        ([], r"no config\.json", "give the folder"),
    ],
)
def test_folders_of_other_things(tmp_path, names, words, remedy):
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=words) as caught:
        open_model(str(tmp_path))
    assert remedy in caught.value.remedy


def test_a_folder_one_level_too_high(tmp_path):
    folder = make_tiny_hf_checkpoint(tmp_path / "outer" / "inner", 1)
    with pytest.raises(CheckpointError) as caught:
        open_model(str(tmp_path / "outer"))
    assert caught.value.remedy == f"did you mean {folder}?"
