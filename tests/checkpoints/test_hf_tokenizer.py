from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from edgeawq.checkpoints.hf_tokenizer import check_tokenizer_file, read_hf_tokenizer
from edgeawq.errors import CheckpointError
from tests.tiny_models import make_tiny_tokenizer

TEXT = make_tiny_tokenizer().tokenizer_json


def write(folder: Path, tokenizer_json: str = TEXT, **files: object) -> Path:
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def read(folder: Path):
    return read_hf_tokenizer(folder, 1, (2, 0))


def test_tokens_named_as_text_or_object(tmp_path):
    config = {"bos_token": {"content": "<|endoftext|>", "lstrip": False}, "eos_token": "<|im_start|>"}
    files = read(write(tmp_path, tokenizer_config=config))
    assert (files.bos_token, files.eos_token, files.add_bos_token) == ("<|endoftext|>", "<|im_start|>", False)
    assert files.tokenizer_json == TEXT


def test_tokens_from_the_older_map_and_from_the_ids(tmp_path):
    write(tmp_path, special_tokens_map={"bos_token": "<|endoftext|>"}, tokenizer_config={"bos_token": None})
    files = read(tmp_path)
    assert (files.bos_token, files.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert read_hf_tokenizer(tmp_path, None, ()).eos_token is None


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ one }}", "{{ one }}"),
        (None, None),
        ([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}], "D"),
        ([{"name": "rag", "template": "R"}], "R"),
        ([], None),
    ],
)
def test_chat_template_in_the_tokenizers_config(tmp_path, template, expected):
    write(tmp_path, tokenizer_config={"chat_template": template})
    assert read(tmp_path).chat_template == expected


def test_a_template_file_wins(tmp_path):
    write(tmp_path, tokenizer_config={"chat_template": "old"})
    (tmp_path / "chat_template.jinja").write_text("new 🙂", encoding="utf-8")
    assert read(tmp_path).chat_template == "new 🙂"


def test_a_template_of_another_type_is_an_error(tmp_path):
    write(tmp_path, tokenizer_config={"chat_template": 5})
    with pytest.raises(CheckpointError, match="chat_template"):
        read(tmp_path)


@pytest.mark.parametrize("wrapped", [False, True])
def test_whether_a_first_token_is_added_follows_from_the_post_processor(tmp_path, wrapped):
    tokenizer = Tokenizer.from_str(TEXT)
    template = processors.TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=[("<|im_start|>", 1)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template]) if wrapped else template
    write(tmp_path, tokenizer.to_str(), tokenizer_config={"bos_token": "<|im_start|>"})
    assert read(tmp_path).add_bos_token is True
    write(tmp_path, tokenizer.to_str(), tokenizer_config={"bos_token": "<|im_start|>", "add_bos_token": False})
    assert read(tmp_path).add_bos_token is False


def test_a_sentencepiece_model_alone_gets_a_remedy(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="tokenizer.model") as caught:
        check_tokenizer_file(tmp_path)
    assert "AutoTokenizer.from_pretrained" in caught.value.remedy
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer\.json"):
        check_tokenizer_file(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", '{"model": {"type": "Nonsense"}}', TEXT[: len(TEXT) // 2]])
def test_a_damaged_tokenizer_names_its_path(tmp_path, text):
    write(tmp_path, text)
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        read(tmp_path)


def test_damage_that_makes_the_library_panic(tmp_path, monkeypatch):
    monkeypatch.setenv("RUST_BACKTRACE", "0")  # resolving the symbols of a trace takes seconds
    described = json.loads(TEXT)
    described["model"]["continuing_subword_prefix"] = "longer than a merge"
    write(tmp_path, json.dumps(described))
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        read(tmp_path)


def test_files_that_are_not_text(tmp_path):
    write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        read(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"a": 1,\n "b"}')
    with pytest.raises(CheckpointError, match="line 2"):
        read(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        read(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match="deeply|not JSON"):
        read(tmp_path)


def test_a_file_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeawq.checkpoints.json_file.MAX_JSON_BYTES", 100)
    write(tmp_path)
    with pytest.raises(CheckpointError, match="at most 100"):
        read(tmp_path)
