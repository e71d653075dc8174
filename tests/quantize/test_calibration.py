from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeawq.errors import CheckpointError, UsageError
from edgeawq.quantize import calibration
from edgeawq.quantize.calibration import (
    choose_sequences,
    make_encoder,
    pack_sequences,
    read_calibration,
    read_documents,
)
from edgeawq.quantize.chat_text import Message, make_chat_renderer
from tests.quantize.runs import SHAPE, make_text, write_text
from tests.tiny_models import TinyCheckpoint, make_tiny_model


@pytest.fixture(scope="module")
def model() -> TinyCheckpoint:
    return make_tiny_model(0, quantized=False, **SHAPE)


def encode(model: TinyCheckpoint, text: str) -> list[int]:
    return make_encoder(model.tokenizer, model.config)(text)


@pytest.mark.parametrize("n_tokens", [1, 63, 64, 65, 128, 200])
def test_packing_drops_nothing(n_tokens: int) -> None:
    tokens = np.arange(n_tokens)
    packed = pack_sequences(tokens, 64)
    assert set(packed.flatten().tolist()) == set(range(n_tokens))
    assert packed.shape[1] == min(n_tokens, 64)
    assert len(packed) == -(-n_tokens // 64)
    assert all(torch.equal(row, torch.arange(int(row[0]), int(row[0]) + len(row))) for row in packed)


def test_a_text_file_is_used_whole(tmp_path: Path, model: TinyCheckpoint) -> None:
    path = write_text(tmp_path / "a.txt", 2, 1111)
    wanted = encode(model, path.read_text())
    found = read_calibration(path, model, 1 << 20, 64, seed=0)
    assert found.n_tokens_found == len(wanted)
    assert (found.source, found.n_documents) == ("a.txt", 1)
    whole = len(wanted) // 64
    assert found.token_ids[:whole].flatten().tolist() == wanted[: whole * 64]
    assert found.token_ids[-1].tolist() == wanted[-64:]
    assert found.n_tokens == found.token_ids.numel()


def test_jsonl_with_text_and_messages(tmp_path: Path, model: TinyCheckpoint) -> None:
    chats = [{"role": "user", "content": make_text(3, 300)}, {"role": "assistant", "content": "naïve: {ü}"}]
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": make_text(4, 200)}), "", json.dumps({"messages": chats}, ensure_ascii=False)]
    path.write_text("\n".join(lines), encoding="utf-8")
    documents = list(read_documents(path, make_chat_renderer(model.tokenizer)))
    chat = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in chats)
    assert documents == [make_text(4, 200), chat]
    found = read_calibration(path, model, 1 << 20, 64, seed=0)
    assert found.n_documents == 2
    assert found.n_tokens_found == sum(len(encode(model, text)) for text in documents)
    assert 1 in found.token_ids  # <|im_start|> is one token, not its letters


def test_a_folder_is_read_in_a_fixed_order(tmp_path: Path, model: TinyCheckpoint) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    texts = {"b.txt": 5, "a.md": 6, "sub/c.txt": 7}
    for name, seed in texts.items():
        write_text(tmp_path / name, seed, 300)
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "the end"}))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / ".git" / "e.txt").write_text("hidden")
    (tmp_path / "empty.txt").write_text(" \n")
    documents = list(read_documents(tmp_path, None))
    assert documents == [make_text(6, 300), make_text(5, 300), "the end", make_text(7, 300)]
    assert read_calibration(tmp_path, model, 1 << 20, 64, seed=0).n_documents == 4


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffthe text".encode())
    assert list(read_documents(path, None)) == ["the text"]


def test_the_seed_chooses_where_there_is_more_than_needed(tmp_path: Path, model: TinyCheckpoint) -> None:
    path = write_text(tmp_path / "a.txt", 8, 9000)
    found = [read_calibration(path, model, 512, 64, seed).token_ids for seed in (0, 0, 1)]
    assert found[0].shape == (8, 64)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    everything = read_calibration(path, model, 1 << 20, 64, 0).token_ids
    assert all((everything == row).all(1).any() for row in found[0])


def test_at_least_one_sequence_is_chosen() -> None:
    assert choose_sequences(torch.arange(20).view(2, 10), 5, 0).shape == (1, 10)


def test_text_beyond_the_limit_is_cut_at_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ääää\nöööö\nüüüü\n", encoding="utf-8")
    for limit, wanted in ((27, ["ääää\nöööö\nüüüü\n"]), (20, ["ääää\nöööö\n"]), (5, ["ää"])):
        monkeypatch.setattr(calibration, "MAX_TEXT_BYTES", limit)
        assert list(read_documents(path, None)) == wanted


BAD_FILES = {
    "short.txt": (b"the user", "holds .* tokens of text; at least 256"),
    "empty.txt": (b"", "holds no text"),
    "blank.txt": (b" \n\t\n", "holds no text"),
    "latin.txt": ("café".encode("latin-1") * 300, "not UTF-8 text .byte 3 is 0xe9"),
    "binary.txt": (b"\xff\xfe\x00\x01" * 300, "not UTF-8 text"),
    "broken.jsonl": (b'{"text": "the"}\n{"text": \n', "line 2 is not JSON"),
    "number.jsonl": (b"7\n", "line 1 has neither"),
    "fields.jsonl": (b'{"text": 7}\n', "line 1 has neither"),
    "turns.jsonl": (b'{"messages": [{"role": "user"}]}\n', "line 1 has neither"),
    "none.jsonl": (b'{"messages": []}\n', "line 1 has neither"),
    "empty.jsonl": (b"\n\n", "holds no text"),
    "deep.jsonl": (b"[" * 200_000, "line 1 is not JSON"),
    "list.jsonl": (b'["the user"]\n', "line 1 has neither"),
    "image.jsonl": (b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}\n', "line 1 has neither"),
    "cut.jsonl": (b'{"text": "the"}\n\n{"text": "th', "line 3 is not JSON"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_do_not_do_are_named(tmp_path: Path, model: TinyCheckpoint, name: str) -> None:
    content, message = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_calibration(path, model, 8192, 64, 0)
    assert name in str(caught.value)
    assert caught.value.remedy


def test_missing_files_and_folders_without_text(tmp_path: Path, model: TinyCheckpoint) -> None:
    with pytest.raises(UsageError, match=r"there is no file or folder .*absent\.txt"):
        read_calibration(tmp_path / "absent.txt", model, 8192, 64, 0)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="holds no text files"):
        read_calibration(tmp_path, model, 8192, 64, 0)


def test_messages_need_a_template(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "the"}]}')
    with pytest.raises(UsageError, match="no chat template"):
        list(read_documents(path, None))


def test_content_in_parts_and_lone_surrogates(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "user"}]
    lines = [json.dumps({"messages": [{"role": "user", "content": parts}]}), '{"text": "a\\ud800b"}', "\r"]
    path.write_text("\n".join(lines))

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return " | ".join(f"{message['role']}: {message['content']}" for message in messages)

    assert list(read_documents(path, render)) == ["user: the user", "a?b"]


def test_what_looks_like_a_data_set_is_explained(tmp_path: Path, model: TinyCheckpoint) -> None:
    with pytest.raises(UsageError) as caught:
        read_calibration(Path("owner/absent"), model, 8192, 64, 0)
    assert "hub:owner/absent" in caught.value.remedy


def test_templates_that_refuse_or_are_broken(model: TinyCheckpoint) -> None:
    from dataclasses import replace

    refusing = make_chat_renderer(replace(model.tokenizer, chat_template="{{ raise_exception('no system role') }}"))
    assert refusing is not None
    with pytest.raises(UsageError, match="no system role"):
        refusing([{"role": "system", "content": "x"}], False)
    with pytest.raises(CheckpointError, match="not valid"):
        make_chat_renderer(replace(model.tokenizer, chat_template="{% for %}"))
    escaping = make_chat_renderer(replace(model.tokenizer, chat_template="{{ ''.__class__.__mro__ }}"))
    assert escaping is not None
    with pytest.raises(UsageError):
        escaping([{"role": "user", "content": "x"}], False)


def test_the_first_token_is_bos_where_plain_text_has_it(model: TinyCheckpoint) -> None:
    from dataclasses import replace

    with_bos = make_encoder(replace(model.tokenizer, add_bos_token=True), model.config)
    without = make_encoder(model.tokenizer, model.config)
    assert with_bos("the user") == [1, *without("the user")]
    assert with_bos("<|im_start|>user") == without("<|im_start|>user")  # a template wrote it already
