from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edgeawq.checkpoints.gguf_file import GgufCheckpoint
from edgeawq.checkpoints.gguf_tokenizer import SPACE_MARK, read_tokenizer, read_vocabulary
from edgeawq.errors import CheckpointError, UnsupportedModelError
from tests.checkpoints.gguf_files import make_gguf
from tests.tiny_models import make_tiny_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
# Assigned characters whose bytes every vocabulary here has.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PIECES = st.lists(
    st.sampled_from(["the capital", " of", "one two", "\n\n", "42", "é", "日本", "🙂", "<|im_end|>", " "])
).map("".join)


def describe_byte_level() -> dict[str, Any]:
    """The tiny byte-level tokenizer as GGUF metadata."""
    model = json.loads(make_tiny_tokenizer().tokenizer_json)
    vocab = sorted(model["model"]["vocab"], key=model["model"]["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocab,
        "tokenizer.ggml.token_type": [CONTROL] * 3 + [NORMAL] * (len(vocab) - 3),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def describe_sentencepiece(seed: int, *, with_bytes: bool = True) -> dict[str, Any]:
    """A random SentencePiece vocabulary: letters, words grown by random merges, bytes."""
    rng = random.Random(seed)
    letters = [SPACE_MARK, *"abcdeé日", "'", "."]
    words = list(letters)
    for _ in range(120):
        word = rng.choice(words) + rng.choice(words)
        if word not in words and len(word) < 9:
            words.append(word)
    tokens, types, scores = ["<unk>", "<s>", "</s>"], [UNKNOWN, CONTROL, CONTROL], [0.0, 0.0, 0.0]
    if with_bytes:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
        types += [BYTE] * 256
        scores += [0.0] * 256
    tokens += ["[TOOL]"]
    types += [USER_DEFINED]
    scores += [0.0]
    merged = words[len(letters) :]
    # As sentencepiece numbers them: each merge scores lower than the one before; single letters come last.
    for rank, word in enumerate([*merged, *letters]):
        tokens.append(word)
        types.append(NORMAL)
        scores.append(-float(rank))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def encode_like_sentencepiece(metadata: dict[str, Any], text: str, prefix: bool) -> list[int]:
    """SentencePiece's BPE: join the neighbours whose union scores highest, leftmost first, until none is a token."""
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    normal = {
        token: index
        for index, token in enumerate(tokens)
        if metadata["tokenizer.ggml.token_type"][index] in (NORMAL, USER_DEFINED)
    }
    pieces = list(((" " if prefix and text else "") + text).replace(" ", SPACE_MARK))
    while True:
        joins = [
            (-scores[normal[pieces[i] + pieces[i + 1]]], i)
            for i in range(len(pieces) - 1)
            if pieces[i] + pieces[i + 1] in normal
        ]
        if not joins:
            break
        _, i = min(joins)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    ids = []
    for piece in pieces:
        if piece in normal:
            ids.append(normal[piece])
        else:
            ids += [tokens.index(f"<0x{byte:02X}>") for byte in piece.encode()]
    return ids


def build(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(read_tokenizer(metadata, read_vocabulary(metadata)).tokenizer_json)


BYTE_LEVEL = build(describe_byte_level())
ORIGINAL = Tokenizer.from_str(make_tiny_tokenizer().tokenizer_json)


@settings(deadline=None, max_examples=200)
@given(text=st.one_of(TEXT, PIECES))
def test_byte_level_bpe_gives_the_originals_tokens(text):
    encoded = BYTE_LEVEL.encode(text, add_special_tokens=False)
    assert encoded.ids == ORIGINAL.encode(text, add_special_tokens=False).ids
    assert BYTE_LEVEL.decode(encoded.ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_chooses_as_its_scores_say(seed, prefix):
    metadata = describe_sentencepiece(seed) | {"tokenizer.ggml.add_space_prefix": prefix}
    tokenizer = build(metadata)
    rng = random.Random(seed)
    for _ in range(150):
        text = "".join(rng.choice("aabbccdde  é日'.Z🙂") for _ in range(rng.randrange(30)))
        expected = encode_like_sentencepiece(metadata, text, prefix)
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected
        assert tokenizer.decode(expected) == text


SENTENCEPIECE = build(describe_sentencepiece(9))


@settings(deadline=None, max_examples=200)
@given(text=TEXT)
@example("  two  spaces \n\t")
@example(SPACE_MARK.replace(SPACE_MARK, "x"))
def test_sentencepiece_round_trip(text):
    if SPACE_MARK in text:  # stands for a space there; the original cannot tell them apart either
        return
    assert SENTENCEPIECE.decode(SENTENCEPIECE.encode(text, add_special_tokens=False).ids) == text


def test_special_tokens_are_found_in_the_text():
    tokenizer = build(describe_sentencepiece(1))
    assert tokenizer.encode("</s>", add_special_tokens=False).ids == [2]
    tool = tokenizer.token_to_id("[TOOL]")
    assert tool in tokenizer.encode("ab[TOOL]cd", add_special_tokens=False).ids
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    assert added == {"<unk>": True, "<s>": True, "</s>": True, "[TOOL]": False}
    # What is special is left out of an answer, what a user defined is not.
    assert "[TOOL]" in tokenizer.decode(tokenizer.encode("ab[TOOL]cd</s>", add_special_tokens=False).ids)


@pytest.mark.parametrize(
    ("describe", "extra", "add_bos"),
    [
        (describe_byte_level, {}, False),
        (describe_byte_level, {"tokenizer.ggml.pre": "llama-bpe"}, True),
        (describe_byte_level, {"tokenizer.ggml.add_bos_token": True}, True),
        (lambda: describe_sentencepiece(1), {}, True),
        (lambda: describe_sentencepiece(1), {"tokenizer.ggml.add_bos_token": False}, False),
        (lambda: describe_sentencepiece(1), {"tokenizer.ggml.bos_token_id": None}, False),
    ],
)
def test_the_first_token_is_added_where_the_model_wants_it(describe, extra, add_bos):
    metadata = describe() | extra
    files = read_tokenizer(metadata, read_vocabulary(metadata))
    assert files.add_bos_token is add_bos
    tokenizer = Tokenizer.from_str(files.tokenizer_json)
    plain = tokenizer.encode("ab", add_special_tokens=False).ids
    assert tokenizer.encode("ab").ids == ([1] if add_bos else []) + plain
    pair = tokenizer.encode("ab", "ab").ids
    assert pair == (([1] if add_bos else []) + plain) * 2


def test_special_ids_and_template():
    metadata = describe_byte_level() | {"tokenizer.chat_template": "{{ messages }}", "tokenizer.ggml.eot_token_id": 7}
    vocabulary = read_vocabulary(metadata)
    files = read_tokenizer(metadata, vocabulary)
    assert (files.bos_token, files.eos_token, files.chat_template) == ("<|im_start|>", "<|im_end|>", "{{ messages }}")
    assert vocabulary.end_of_turn_ids == (2, 7, 0)
    assert read_tokenizer(describe_byte_level() | {"tokenizer.chat_template": " \n"}, vocabulary).chat_template is None


@pytest.mark.parametrize(
    ("metadata", "error", "words"),
    [
        ({"tokenizer.ggml.model": "bert"}, UnsupportedModelError, "'bert'"),
        ({"tokenizer.ggml.model": None}, UnsupportedModelError, "None"),
        ({"tokenizer.ggml.pre": "klingon"}, UnsupportedModelError, "klingon"),
        ({"tokenizer.ggml.merges": []}, CheckpointError, "no merges"),
        ({"tokenizer.ggml.merges": ["one"]}, CheckpointError, "'one'"),
        ({"tokenizer.ggml.merges": ["zz qq"]}, CheckpointError, "cannot read|can read"),
        ({"tokenizer.ggml.merges": 5}, CheckpointError, "list of str"),
        ({"tokenizer.ggml.tokens": [1, 2]}, CheckpointError, "list of str"),
        ({"tokenizer.ggml.model": "llama"}, CheckpointError, "0 scores"),
        ({"tokenizer.ggml.bos_token_id": "x"}, CheckpointError, "bos_token_id is 'x'"),
    ],
)
def test_metadata_that_makes_no_tokenizer(metadata, error, words):
    described = describe_byte_level() | metadata
    with pytest.raises(error, match=words):
        read_tokenizer(described, read_vocabulary(described))


def test_a_sentencepiece_file_opens(tmp_path):
    metadata = describe_sentencepiece(2)
    drop = {"tokenizer.ggml.pre": None, "tokenizer.ggml.merges": None}
    make_gguf(tmp_path / "m.gguf", 1, write={"metadata": metadata | drop}, vocab=512)
    opened = GgufCheckpoint(tmp_path / "m.gguf")
    assert opened.tokenizer.bos_token == "<s>"
    assert Tokenizer.from_str(opened.tokenizer.tokenizer_json).decode([1, 2]) == ""
