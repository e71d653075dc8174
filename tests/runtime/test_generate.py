"""The loop around the decoder: what is shown, when it ends, and what is left in the KV cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from edgeawq.errors import ContextFullError, GenerationError, UsageError
from edgeawq.runtime.engine import Engine
from edgeawq.runtime.generate import PREFILL_SLICE, Piece, generate
from edgeawq.runtime.sampler import SamplerSettings, make_sampler
from edgeawq.runtime.stats import GenerationStats
from tests.runtime.fake_decoder import FakeDecoder
from tests.runtime.fake_engine import build_fake_engine

GREEDY = make_sampler(SamplerSettings())
TEXT = "Grüße aus Köln 🙂, that is all."


def prompt_of(engine: Engine, text: str) -> list[int]:
    return engine.tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")


def decoder_of(engine: Engine) -> FakeDecoder:
    assert isinstance(engine.decoder, FakeDecoder)
    return engine.decoder


def run(engine: Engine, prompt: Sequence[int], **options: object) -> list[Piece]:
    options.setdefault("stop_token_ids", engine.stop_token_ids)
    return list(generate(engine.decoder, engine.tokenizer, prompt, GREEDY, **options))  # type: ignore[arg-type]


def test_answer_streams_and_ends_at_the_stop_token() -> None:
    engine = build_fake_engine(lambda question: TEXT)
    prompt = prompt_of(engine, "hi")
    pieces = run(engine, prompt)
    assert "".join(piece.text for piece in pieces) == TEXT
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == "stop"
    tokens = [token for piece in pieces for token in piece.token_ids]
    assert tokens[-1] in engine.stop_token_ids
    # the stop token is not fed back
    assert decoder_of(engine).context == [*prompt, *tokens[:-1]]
    assert pieces[-1].stats.generated_tokens == len(tokens)
    assert pieces[-1].stats.prompt_tokens == len(prompt)


def test_length_limit() -> None:
    engine = build_fake_engine(lambda question: "one two three four five six")
    pieces = run(engine, prompt_of(engine, "hi"), max_new_tokens=3)
    assert pieces[-1].finish_reason == "length"
    assert sum(len(piece.token_ids) for piece in pieces) == 3
    assert "one two three four five six".startswith("".join(piece.text for piece in pieces))


def test_stop_string_across_tokens_is_not_shown() -> None:
    engine = build_fake_engine(lambda question: "The capital of France is Paris. END of it")
    pieces = run(engine, prompt_of(engine, "hi"), stop_strings=["END of", "never"])
    assert "".join(piece.text for piece in pieces) == "The capital of France is Paris. "
    assert pieces[-1].finish_reason == "stop"


def test_held_back_text_comes_when_the_answer_ends() -> None:
    engine = build_fake_engine(lambda question: "it is <en")
    pieces = run(engine, prompt_of(engine, "hi"), stop_strings=["<end>"])
    assert "".join(piece.text for piece in pieces) == "it is <en"


def test_a_full_context_ends_with_its_own_reason() -> None:
    engine = build_fake_engine(lambda question: "word " * 200)
    prompt = prompt_of(engine, "hi")
    decoder_of(engine).context_length = len(prompt) + 5
    pieces = run(engine, prompt)
    assert pieces[-1].finish_reason == "context"
    # five tokens fed back, and one more sampled from the last logits
    assert sum(len(piece.token_ids) for piece in pieces) == 6
    assert engine.decoder.position == engine.decoder.context_length


def test_a_prompt_that_does_not_fit_changes_nothing() -> None:
    engine = build_fake_engine(lambda question: "x")
    decoder_of(engine).context_length = 5
    with pytest.raises(ContextFullError) as caught:
        run(engine, prompt_of(engine, "a long question"))
    assert "room for 5" in caught.value.what
    assert caught.value.remedy
    assert engine.decoder.position == 0


@pytest.mark.parametrize("n_prompt", [1, PREFILL_SLICE - 1, PREFILL_SLICE, PREFILL_SLICE + 1, 3 * PREFILL_SLICE])
def test_prefill_reports_progress_in_slices(n_prompt: int) -> None:
    engine = build_fake_engine(None, context_length=1000)
    seen: list[tuple[int, int]] = []
    run(engine, [3] * n_prompt, max_new_tokens=1, on_prefill_progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, n_prompt) and seen[-1] == (n_prompt, n_prompt)
    assert sum(decoder_of(engine).calls) == n_prompt
    assert max(decoder_of(engine).calls) <= PREFILL_SLICE


def test_cancel_during_prefill() -> None:
    engine = build_fake_engine(None, context_length=1000)
    decoder = decoder_of(engine)
    pieces = run(engine, [3] * 500, cancelled=lambda: decoder.position >= PREFILL_SLICE)
    assert [piece.finish_reason for piece in pieces] == ["cancelled"]
    assert pieces[0].token_ids == ()
    assert decoder.position == PREFILL_SLICE


def test_cancel_during_the_answer_keeps_what_was_said() -> None:
    engine = build_fake_engine(lambda question: "one two three four five six seven")
    prompt = prompt_of(engine, "hi")
    pieces = run(engine, prompt, cancelled=lambda: engine.decoder.position >= len(prompt) + 3)
    assert pieces[-1].finish_reason == "cancelled"
    text = "".join(piece.text for piece in pieces)
    assert text and "one two three four five six seven".startswith(text)


def test_half_a_character_at_the_end_becomes_a_replacement() -> None:
    engine = build_fake_engine(lambda question: "🙂")
    pieces = run(engine, prompt_of(engine, "hi"), max_new_tokens=1)
    text = "".join(piece.text for piece in pieces)
    assert text in ("\ufffd", "🙂")


def test_sampler_sees_the_whole_history() -> None:
    engine = build_fake_engine(None)
    seen: list[list[int]] = []

    def sample(logits: npt.NDArray[np.float32], history: Sequence[int] | npt.NDArray[np.int32]) -> int:
        seen.append([int(token) for token in history])
        return 40 + len(seen)

    list(generate(engine.decoder, engine.tokenizer, [5, 6], sample, max_new_tokens=3, history=[1, 2]))
    assert seen == [[1, 2, 5, 6], [1, 2, 5, 6, 41], [1, 2, 5, 6, 41, 42]]


def test_wrong_use_is_refused_before_anything_runs() -> None:
    engine = build_fake_engine(None)
    with pytest.raises(UsageError, match="0 tokens"):
        run(engine, [1], max_new_tokens=0)
    with pytest.raises(GenerationError, match="no tokens"):
        run(engine, [])
    assert decoder_of(engine).calls == []


def test_rates_leave_the_first_token_to_the_prefill() -> None:
    stats = GenerationStats(100, 0, generated_tokens=11, prefill_s=0.5, decode_s=2.0, time_to_first_token_s=0.6)
    assert stats.prefill_tokens_per_s == 200
    assert stats.decode_tokens_per_s == 5
    assert GenerationStats(1, 0, 1, 0.0, 0.0, 0.0).decode_tokens_per_s == 0


def test_times_add_up() -> None:
    engine = build_fake_engine(lambda question: "one two three four", delay_s=0.01)
    stats = run(engine, prompt_of(engine, "hi"))[-1].stats
    assert stats.time_to_first_token_s >= stats.prefill_s >= 0.01
    assert stats.decode_s >= 0.01 * (stats.generated_tokens - 1)
