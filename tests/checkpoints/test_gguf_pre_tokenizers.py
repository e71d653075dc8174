from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgeawq.checkpoints.gguf_pre_tokenizers import PRE_TOKENIZERS, describe_pre_tokenizer, find_pre_tokenizer
from edgeawq.errors import UnsupportedModelError

DECODER = decoders.ByteLevel()
# Plain text, text with many kinds of digits, marks and spaces, and text with contractions.
TEXT = st.one_of(
    st.text(),
    st.text(alphabet="ab ÉßøжД中日ー\u0301\u0903٣²½Ⅷ0123456789'\n\r\t\u00a0\u2003!?.,$+<=>^~|`_-…🙂👩🏽‍🚀"),
    st.lists(st.sampled_from(["I'll", "it'S", " don't", "'re", "1234567", "\r\n\r\n", "  x", "\t", "a\n", " "])).map(
        "".join
    ),
)


def build(description: dict[str, object]) -> pre_tokenizers.PreTokenizer:
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": description,
        "post_processor": None,
        "decoder": None,
        "model": json.loads(Tokenizer(models.BPE()).to_str())["model"],
    }
    return Tokenizer.from_str(json.dumps(tokenizer)).pre_tokenizer


BUILT = {name: build(describe_pre_tokenizer(entry)) for name, entry in PRE_TOKENIZERS.items()}


def split(name: str, text: str) -> list[str]:
    return [DECODER.decode([piece]) for piece, _ in BUILT[name].pre_tokenize_str(text)]


def split_raw(pre_tokenizer: pre_tokenizers.PreTokenizer, text: str) -> list[str]:
    return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
@settings(deadline=None, max_examples=40)
@given(text=TEXT)
def test_no_character_is_lost(name, text):
    assert DECODER.decode(split_raw(BUILT[name], text)) == text


@settings(deadline=None, max_examples=300)
@given(text=TEXT)
def test_smollm_splits_as_its_hugging_face_tokenizer(text):
    # The published tokenizer.json of SmolLM2: single digits, then GPT-2's split built into the library.
    reference = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert split_raw(BUILT["smollm"], text) == split_raw(reference, text)


@settings(deadline=None, max_examples=300)
@given(text=TEXT)
def test_gpt2_splits_as_the_librarys_own(text):
    reference = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert split_raw(BUILT["gpt-2"], text) == split_raw(reference, text)


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        (
            "llama-bpe",
            "I'LL pay 12345.67€\n\n  ok",
            ["I", "'LL", " pay", " ", "123", "45", ".", "67", "€\n\n", " ", " ok"],
        ),
        ("llama-bpe", "#include x\r\n\tfoo", ["#include", " x", "\r\n", "\tfoo"]),
        ("qwen2", "in 2024, it's", ["in", " ", "2", "0", "2", "4", ",", " it", "'s"]),
        ("gpt-2", "I'LL pay 12345  ok\n", ["I", "'", "LL", " pay", " 12345", " ", " ok", "\n"]),
        ("smollm", "in 1999's", ["in", " ", "1", "9", "9", "9", "'s"]),
        ("default", "a+b, 12345 x", ["a", "+", "b", ",", " ", "123", "45", " x"]),
        ("tekken", "HelloWorld iPhone ÄÖü", ["Hello", "World", " i", "Phone", " ÄÖü"]),
        ("falcon", "x=12345`y", ["x", "=", "123", "45", "`", "y"]),
        ("deepseek-coder", "a 12\nb.", ["a", " ", "1", "2", "\n", "b", "."]),
    ],
)
def test_known_splits(name, text, pieces):
    assert split(name, text) == pieces


def test_llama3_takes_whole_words_and_begins_with_a_token():
    assert find_pre_tokenizer("llama-bpe").ignore_merges
    assert find_pre_tokenizer("llama-bpe").add_bos
    assert not find_pre_tokenizer("smollm").add_bos


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UnsupportedModelError, match="'klingon'.*llama-bpe.*smollm"):
        find_pre_tokenizer("klingon")
