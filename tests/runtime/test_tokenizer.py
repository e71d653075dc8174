"""Streaming must give the same text as decoding at once, never half a character on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeawq.errors import BundleError, GenerationError
from edgeawq.runtime import tokenizer as tokenizer_module
from edgeawq.runtime.tokenizer import REPLACEMENT, Tokenizer, build_byte_table
from tests.runtime.tiny_tokenizer import build_byte_level_json, build_metaspace_json, build_sentencepiece_json

KINDS = {
    "byte_level": build_byte_level_json,
    "byte_fallback": build_sentencepiece_json,
    "other": build_metaspace_json,
}

texts = st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("é日🙂👍🏽 \n\tab")), max_size=40)


def load(kind: str) -> Tokenizer:
    tokenizer = Tokenizer.from_json(KINDS[kind]())
    assert tokenizer._kind.name == kind
    return tokenizer


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@settings(deadline=None)
@given(text=texts)
def test_streaming_valid_text_gives_it_back_in_whole_characters(kind: str, text: str) -> None:
    tokenizer = load(kind)
    tokens = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokens]
    assert "".join(pieces).count(REPLACEMENT) == text.count(REPLACEMENT)
    assert "".join(pieces) + stream.flush() == tokenizer.decode(tokens) == text


@settings(deadline=None)
@given(text=st.text(alphabet="abcdefg The capital of France", max_size=40))
def test_streaming_through_the_library_gives_what_decoding_gives(text: str) -> None:
    tokenizer = load("other")
    tokens = tokenizer.encode(text)
    stream = tokenizer.stream()
    assert "".join(map(stream.push, tokens)) + stream.flush() == tokenizer.decode(tokens)


@settings(deadline=None)
@given(data=st.data())
def test_streaming_random_byte_level_tokens_equals_decoding(data: st.DataObject) -> None:
    """Random tokens are mostly invalid UTF-8: the replacement characters must be the same ones, too."""
    tokenizer = load("byte_level")
    tokens = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    stream = tokenizer.stream()
    assert "".join(map(stream.push, tokens)) + stream.flush() == tokenizer.decode(tokens)


@settings(deadline=None)
@given(data=st.data())
def test_streaming_random_sentencepiece_tokens_keeps_all_whole_pieces(data: st.DataObject) -> None:
    tokenizer = load("byte_fallback")
    ordinary = [i for i in range(tokenizer.vocab_size) if not (tokenizer._written_form(i) or "<").startswith("<")]
    tokens = data.draw(st.lists(st.sampled_from(ordinary), max_size=30))
    stream = tokenizer.stream()
    assert "".join(map(stream.push, tokens)) + stream.flush() == tokenizer.decode(tokens)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_each_piece_ends_with_a_whole_character(kind: str) -> None:
    tokenizer = load(kind)
    byte_tokens = _byte_tokens(tokenizer, kind, "🙂é")
    stream = tokenizer.stream()
    assert [stream.push(token) for token in byte_tokens] == ["", "", "", "🙂", "", "é"]
    assert stream.flush() == ""


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_an_unfinished_character_becomes_one_replacement_at_the_end(kind: str) -> None:
    tokenizer = load(kind)
    stream = tokenizer.stream()
    assert [stream.push(token) for token in _byte_tokens(tokenizer, kind, "🙂")[:3]] == ["", "", ""]
    assert stream.flush() == REPLACEMENT
    assert stream.flush() == ""


def test_a_piece_after_half_a_character_is_not_lost() -> None:
    tokenizer = load("byte_fallback")
    half = _byte_tokens(tokenizer, "byte_fallback", "é")[0]
    whole = tokenizer.encode("a")
    stream = tokenizer.stream()
    text = stream.push(half) + "".join(map(stream.push, whole)) + stream.flush()
    assert text == REPLACEMENT + " a"


def test_sentencepiece_takes_away_the_first_space_only() -> None:
    tokenizer = load("byte_fallback")
    tokens = [*tokenizer.encode("The capital"), *tokenizer.encode("The")]
    stream = tokenizer.stream()
    pieces = "".join(map(stream.push, tokens))
    assert pieces == "The capital The"


def test_special_tokens_are_hidden_unless_asked_for() -> None:
    tokenizer = load("byte_level")
    tokens = tokenizer.encode("<|im_start|>user\nhi<|im_end|>")
    assert tokenizer.is_special(tokens[0]) and tokenizer.is_special(tokens[-1])
    hidden, shown = tokenizer.stream(), tokenizer.stream(skip_special=False)
    assert "".join(map(hidden.push, tokens)) == "user\nhi"
    assert "".join(map(shown.push, tokens)) == "<|im_start|>user\nhi<|im_end|>"


def test_unused_ids_of_a_padded_vocabulary_give_no_text() -> None:
    stream = load("byte_level").stream()
    assert stream.push(10**6) == ""


def test_plain_text_begins_with_the_first_token_once() -> None:
    tokenizer = Tokenizer.from_json(build_byte_level_json(), add_bos_token="<|endoftext|>")
    bos = tokenizer.token_id("<|endoftext|>")
    assert tokenizer.encode_plain("hi")[0] == bos
    assert tokenizer.encode_plain("<|endoftext|>hi") == tokenizer.encode_plain("hi")
    assert tokenizer.encode("hi") == tokenizer.encode_plain("hi")[1:]


def test_lone_surrogates_do_not_stop_the_program() -> None:
    tokenizer = load("byte_level")
    assert tokenizer.decode(tokenizer.encode("a\udcffb")) == "a?b"


def test_byte_table_covers_every_byte_once() -> None:
    assert sorted(build_byte_table().values()) == list(range(256))


def test_broken_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not load"):
        Tokenizer.from_json("{}")
    with pytest.raises(BundleError, match="cannot read"):
        Tokenizer.from_file(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="cannot read"):
        Tokenizer.from_file(tmp_path / "binary.json")
    with pytest.raises(BundleError, match="no token '<bos>'"):
        Tokenizer.from_json(build_byte_level_json(), add_bos_token="<bos>")
    (tmp_path / "good.json").write_text(build_byte_level_json(), encoding="utf-8")
    assert Tokenizer.from_file(tmp_path / "good.json").vocab_size == load("byte_level").vocab_size


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(build_byte_level_json(), encoding="utf-8")
    monkeypatch.setattr(tokenizer_module, "MAX_TOKENIZER_BYTES", 1000)
    with pytest.raises(BundleError, match="limit of 1000"):
        Tokenizer.from_file(path)
    monkeypatch.setattr(tokenizer_module, "MAX_TEXT_CHARS", 10)
    with pytest.raises(GenerationError, match="limit of 10"):
        load("byte_level").encode("x" * 11)


def test_a_strip_that_is_not_the_usual_one_goes_through_the_library() -> None:
    document = json.loads(build_sentencepiece_json())
    document["decoder"]["decoders"][3]["start"] = 2
    assert Tokenizer.from_json(json.dumps(document))._kind.name == "other"
    del document["decoder"]["decoders"][3]
    kept = Tokenizer.from_json(json.dumps(document))
    assert kept._kind.name == "byte_fallback" and not kept._kind.strips_first_space


def _byte_tokens(tokenizer: Tokenizer, kind: str, text: str) -> list[int]:
    if kind == "byte_level":
        letters = {byte: char for char, byte in build_byte_table().items()}
        found = [tokenizer.token_id(letters[byte]) for byte in text.encode()]
    else:
        found = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in text.encode()]
    assert None not in found
    return [token for token in found if token is not None]
