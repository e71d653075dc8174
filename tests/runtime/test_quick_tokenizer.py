"""The quick tokenizer gives the very tokens of the whole one, or steps aside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from edgeawq.runtime import quick_tokenizer
from edgeawq.runtime.quick_tokenizer import (
    MAX_QUICK_CHARS,
    QuickBackend,
    keep_vocabulary,
    load_vocabulary,
    open_quick_backend,
    read_vocabulary,
)
from edgeawq.runtime.tokenizer import Tokenizer
from tests.runtime.tiny_tokenizer import (
    CORPUS,
    SPECIALS,
    build_byte_level_json,
    build_metaspace_json,
    build_sentencepiece_json,
)

TEXT = build_byte_level_json(900)
WORDS = sorted({word for line in CORPUS for word in line.split(" ")})


def refuse() -> Any:
    raise AssertionError("the whole tokenizer was loaded")


def make_quick(text: str = TEXT) -> QuickBackend:
    vocabulary = read_vocabulary(json.loads(text))
    assert vocabulary is not None
    return QuickBackend(vocabulary, refuse)


def open_and_keep(text: str, folder: Path) -> Any:
    backend, keep = open_quick_backend(text, folder)
    if keep is not None:
        keep()
    return backend


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_tokenizer, "LEAST_CHARS", 0)


texts = st.lists(st.one_of(st.sampled_from([*WORDS, *SPECIALS, " ", "\n", "  "]), st.text(max_size=8)), max_size=25)


@settings(deadline=None, max_examples=150)
@given(texts)
def test_every_text_gives_the_same_tokens(parts: list[str]) -> None:
    text = "".join(parts).encode("utf-8", "replace").decode()
    whole = Backend.from_str(TEXT)
    assert make_quick().encode(text, add_special_tokens=False).ids == whole.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("change", [{}, {"ignore_merges": True}])
def test_other_shapes_of_the_file(change: dict[str, Any]) -> None:
    """Merges as one string each, digits apart, tokens that were added behind the vocabulary."""
    document = json.loads(TEXT)
    document["model"] = {**document["model"], **change}
    document["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in document["model"]["merges"]]
    steps = [{"type": "Digits", "individual_digits": True}, document["pre_tokenizer"]]
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    if not change:
        extra = {**document["added_tokens"][0], "id": len(document["model"]["vocab"]), "content": "<tool>"}
        document["added_tokens"].append(extra)
    text = json.dumps(document)
    whole, quick = Backend.from_str(text), make_quick(text)
    for sample in [*CORPUS, "one two<tool>three 1234<|im_end|>", "<tool>", ""]:
        expected = whole.encode(sample, add_special_tokens=False).ids
        assert quick.encode(sample, add_special_tokens=False).ids == expected
    assert quick.get_vocab_size(with_added_tokens=True) == whole.get_vocab_size(with_added_tokens=True)
    for id_ in range(-1, whole.get_vocab_size() + 2):
        assert quick.id_to_token(id_) == (whole.id_to_token(id_) if id_ >= 0 else None)
    for token in [*SPECIALS, "<tool>", "Ġthe", "absent"]:
        assert quick.token_to_id(token) == whole.token_to_id(token)


def test_the_text_side_behaves_as_with_the_whole_one(always: None, tmp_path: Path) -> None:
    whole = Tokenizer.from_json(TEXT)
    first = Tokenizer.from_json(TEXT, vocabulary_folder=tmp_path)
    assert list(tmp_path.iterdir()) == []  # nobody waits for it
    first.prepare_next_start()
    first.prepare_next_start()
    assert len(list(tmp_path.iterdir())) == 1
    quick = Tokenizer.from_json(TEXT, vocabulary_folder=tmp_path, add_bos_token="<|endoftext|>")
    assert isinstance(quick._backend, QuickBackend)
    sample = "<|im_start|>Grüße aus Köln 🙂🙂, that is all.<|im_end|>"
    tokens = whole.encode(sample)
    assert quick.encode(sample) == tokens
    assert quick.vocab_size == whole.vocab_size
    assert [quick.is_special(id_) for id_ in range(20)] == [whole.is_special(id_) for id_ in range(20)]
    left, right = quick.stream(), whole.stream()
    assert [left.push(token) for token in tokens] == [right.push(token) for token in tokens]
    assert quick._backend._whole is None
    assert quick.decode(tokens) == whole.decode(tokens)  # this takes the whole one
    assert quick._backend._whole is not None and quick.encode(sample) == tokens


def test_a_long_text_goes_through_the_whole_one() -> None:
    with pytest.raises(AssertionError, match="whole tokenizer was loaded"):
        make_quick().encode("x" * (MAX_QUICK_CHARS + 1), add_special_tokens=False)


def test_other_kinds_are_left_alone(always: None, tmp_path: Path) -> None:
    changed = []
    for key, value in (("dropout", 0.1), ("unk_token", "?"), ("byte_fallback", True), ("end_of_word_suffix", "</w>")):
        document = json.loads(TEXT)
        document["model"][key] = value
        changed.append(document)
    document = json.loads(TEXT)
    document["normalizer"] = {"type": "NFC"}
    changed.append(document)
    document = json.loads(TEXT)
    document["pre_tokenizer"]["add_prefix_space"] = True
    changed.append(document)
    for text in (build_sentencepiece_json(), build_metaspace_json(), *map(json.dumps, changed)):
        assert read_vocabulary(json.loads(text)) is None
        backend = open_and_keep(text, tmp_path)
        assert isinstance(backend, Backend)
    assert list(tmp_path.iterdir()) == []


def test_a_small_tokenizer_is_not_worth_a_file(tmp_path: Path) -> None:
    assert isinstance(open_and_keep(TEXT, tmp_path), Backend)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_made_again(always: None, tmp_path: Path) -> None:
    open_and_keep(TEXT, tmp_path)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    for broken in (b"", data[:-1], data[:100], data[:50] + b"!" + data[51:], data + b"x"):
        path.write_bytes(broken)
        assert load_vocabulary(path) is None
        assert isinstance(open_and_keep(TEXT, tmp_path), Backend)
        assert path.read_bytes() == data
    assert isinstance(open_and_keep(TEXT, tmp_path), QuickBackend)


def test_another_tokenizer_never_gets_this_file(always: None, tmp_path: Path) -> None:
    open_and_keep(TEXT, tmp_path)
    assert isinstance(open_and_keep(build_byte_level_json(450), tmp_path), Backend)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written_changes_nothing(always: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert isinstance(open_and_keep(TEXT, tmp_path / "file" / "folder"), Backend)


def test_a_file_that_would_give_other_tokens_is_not_kept(tmp_path: Path) -> None:
    document = json.loads(TEXT)
    document["model"]["merges"] = document["model"]["merges"][:20]
    assert not keep_vocabulary(tmp_path / "x.vocab", json.dumps(document), Backend.from_str(TEXT))
    assert list(tmp_path.iterdir()) == []
