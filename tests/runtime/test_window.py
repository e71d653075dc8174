"""A full context: what stays, and that the answer then is that of a decoder that never saw the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeawq.errors import ContextFullError
from edgeawq.runtime.chat_template import Message
from edgeawq.runtime.decoder import Decoder
from edgeawq.runtime.generate import generate
from edgeawq.runtime.sampler import SamplerSettings, make_sampler
from edgeawq.runtime.session import ChatSession
from edgeawq.runtime.window import choose_kept
from tests.runtime.fake_decoder import FakeDecoder
from tests.runtime.fake_engine import build_fake_engine
from tests.runtime.native_bundles import pack_for_host
from tests.tiny_models import make_tiny_model

ENGINE = build_fake_engine(None)
GREEDY = make_sampler(SamplerSettings())


def test_the_first_tokens_and_the_newer_half_of_the_rest_stay() -> None:
    assert choose_kept(list(range(11)), 3, 10) == ([0, 1, 2, 7, 8, 9, 10], 3)
    assert choose_kept(list(range(11)), 0, 10) == ([6, 7, 8, 9, 10], 0)
    # never more than half of the context is kept for good
    assert choose_kept(list(range(11)), 11, 10) == ([0, 1, 2, 3, 4, 8, 9, 10], 5)
    assert choose_kept([7, 8], 4, 1) == ([8], 0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_for_host(make_tiny_model(9), tmp_path_factory.mktemp("bundle") / "tiny.edgeawq")


@pytest.mark.parametrize("speculate", [False, True])
def test_after_a_shift_the_answer_is_that_of_a_fresh_decoder(bundle: Path, speculate: bool) -> None:
    """Exactly, and so is what the cache holds."""
    windows: list[tuple[int, list[int]]] = []  # (tokens answered before, what was left)
    answer: list[int] = []

    def note(left: list[int]) -> None:
        windows.append((len(answer), list(left)))

    settings = SamplerSettings(temperature=0.9, top_k=30, repetition_penalty=1.2, seed=3)
    with Decoder.open(bundle, n_threads=1, context_length=64) as decoder:
        prompt = np.random.default_rng().integers(3, min(400, decoder.config.vocab_size), 40).tolist()
        for piece in generate(
            decoder,
            ENGINE.tokenizer,
            prompt,
            make_sampler(settings),
            max_new_tokens=150,
            speculate=speculate,
            on_full="shift",
            n_keep=10,
            on_shift=note,
        ):
            answer += piece.token_ids
        assert len(answer) == 150 and len(windows) >= 4
        assert piece.stats.shifts == len(windows) and piece.finish_reason == "length"
        end = [decoder.export_layer(layer, decoder.position) for layer in range(decoder.config.n_layers)]
    text = prompt
    for index, (n_before, left) in enumerate(windows):
        n_after = windows[index + 1][0] if index + 1 < len(windows) else len(answer)
        start = windows[index - 1][0] if index else 0
        text = [*text, *answer[start:n_before]]
        assert left == choose_kept(text, 10, 64)[0]
        text = left
        with Decoder.open(bundle, n_threads=1, context_length=64) as fresh:
            sampler = make_sampler(settings)
            for _ in range(n_before):  # the draws that were made before the shift
                sampler(np.zeros(8, np.float32), [])
            pieces = list(
                generate(fresh, ENGINE.tokenizer, left, sampler, max_new_tokens=n_after - n_before, on_full="stop")
            )
            assert [token for piece in pieces for token in piece.token_ids] == answer[n_before:n_after]
            if index == len(windows) - 1:
                assert all(
                    np.array_equal(fresh.export_layer(layer, fresh.position), expected)
                    for layer, expected in enumerate(end)
                )


def test_a_shift_can_be_stopped() -> None:
    decoder = FakeDecoder(50, context_length=600, choose_next=lambda context: len(context) % 50)
    shifted: list[list[int]] = []
    pieces = list(
        generate(
            decoder,
            ENGINE.tokenizer,
            [1] * 590,
            GREEDY,
            on_full="shift",
            on_shift=shifted.append,
            cancelled=lambda: decoder.position < 500 and len(decoder.calls) > 6,
        )
    )
    assert pieces[-1].finish_reason == "cancelled"
    (left,) = shifted
    assert decoder.context == left[: decoder.position]
    assert decoder.position < len(left)


# --- conversations ----------------------------------------------------------------------------------------------------


def start(context_length: int, **options: Any) -> tuple[ChatSession, FakeDecoder]:
    engine = build_fake_engine(lambda question: f"You said: {question}", context_length=context_length)
    assert isinstance(engine.decoder, FakeDecoder)
    return ChatSession(engine, **options), engine.decoder


def ask(session: ChatSession, text: str, **options: Any) -> str:
    return "".join(piece.text for piece in session.reply(text, GREEDY, **options))


def test_old_turns_are_left_out_and_the_system_prompt_stays() -> None:
    session, decoder = start(160, system="Be brief.", on_full="shift")
    for index in range(30):
        assert ask(session, f"question {index}") == f"You said: question {index}"
        assert decoder.position <= 160
        shown = session.engine.tokenizer.decode(decoder.context, skip_special=False)
        assert shown.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
        assert shown.count("Be brief.") == 1
    assert len(session.messages) == 60  # all of them are still there, to be saved
    assert 0 < session.n_dropped < 60 and session.n_dropped % 2 == 0
    newest = [*session.messages[session.n_dropped :]]
    text = session.engine.template.render([Message("system", "Be brief."), *newest], add_generation_prompt=False)
    assert text.startswith(session.engine.tokenizer.decode(decoder.context, skip_special=False))


def test_several_questions_fit_between_two_shifts() -> None:
    session, _ = start(160, on_full="shift")
    dropped = []
    for index in range(30):
        ask(session, f"question {index}")
        dropped.append(session.n_dropped)
    assert len(set(dropped)) < 20


def test_a_long_answer_goes_on_after_the_context_was_full() -> None:
    engine = build_fake_engine(None, context_length=100)
    session = ChatSession(engine, system="Be brief.", on_full="shift")
    decoder = engine.decoder
    assert isinstance(decoder, FakeDecoder)
    ask(session, "write", max_new_tokens=250)
    stats = session.last_stats
    assert stats is not None and (stats.shifts > 0 or stats.generated_tokens < 60)  # random text may end early
    shown = engine.tokenizer.decode(decoder.context, skip_special=False)
    assert shown.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert decoder.position == session.context_used <= 100
    assert session._cached == decoder.context  # what the session believes is what the cache holds


def test_a_single_question_that_is_too_long_is_still_refused() -> None:
    session, _ = start(60, on_full="shift")
    ask(session, "one")
    with pytest.raises(ContextFullError, match="room for 60"):
        ask(session, "many words " * 20)
    assert session.n_dropped == 0 and len(session.messages) == 2
    assert ask(session, "two") == "You said: two"


def test_stop_is_the_default() -> None:
    session, _ = start(60)
    ask(session, "one")
    with pytest.raises(ContextFullError):
        ask(session, "a b c d e f g h i j k l m n o p")
    assert session.n_dropped == 0
