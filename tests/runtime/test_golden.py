"""The golden test accepts the right tokens, forgives a near tie, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest

from edgeawq.errors import GenerationError
from edgeawq.runtime.golden import NEAR_TIE_LOGITS, record_golden_of, run_golden
from tests.runtime.fake_decoder import FakeDecoder
from tests.runtime.fake_engine import build_fake_engine


class TiltedDecoder(FakeDecoder):
    """Adds `tilt` to the logit of one token, as another order of sums would."""

    tilted_token = 0
    tilt = 0.0

    def forward(self, tokens: list[int]) -> npt.NDArray[np.float32]:  # type: ignore[override]
        logits = super().forward(tokens).copy()
        logits[self.tilted_token] += np.float32(self.tilt)
        return logits


def test_recorded_tokens_come_out_again() -> None:
    engine = build_fake_engine(None, context_length=2000)
    golden = record_golden_of(engine, 12)
    assert json.loads(json.dumps(golden)) == golden
    assert 1 <= len(golden["expected_tokens"]) <= 12
    result = run_golden(engine.decoder, golden["prompt_tokens"], golden["expected_tokens"])
    assert result.ok and result.n_near_ties == 0
    assert list(result.tokens) == golden["expected_tokens"]
    assert set(result.to_dict()) >= {"ok", "tokens", "expected", "decode_tokens_per_s"}


def test_recording_ends_with_the_answer() -> None:
    engine = build_fake_engine(lambda question: "Paris")
    golden = record_golden_of(engine, 50)
    assert golden["text"] == "Paris"
    assert golden["expected_tokens"][-1] in engine.stop_token_ids


@pytest.mark.parametrize("position", [0, 3, 7])
def test_one_wrong_token_fails(position: int) -> None:
    decoder = FakeDecoder(100)
    expected = _answer_greedily(decoder, [1, 2, 3], 8)
    wrong = list(expected)
    # the least likely token there, far from a tie
    wrong[position] = int(decoder.logits_of([1, 2, 3, *expected[:position]]).argmin())
    result = run_golden(decoder, [1, 2, 3], wrong)
    assert not result.ok
    assert result.tokens[: position + 1] == tuple(expected[: position + 1])


def test_a_near_tie_is_forgiven_and_counted() -> None:
    decoder = TiltedDecoder(100)
    prompt = [4, 5]
    logits = decoder.logits_of(prompt)
    first, second = np.argsort(-logits)[:2].tolist()
    gap = float(logits[first] - logits[second])
    decoder.tilted_token, decoder.tilt = second, gap + NEAR_TIE_LOGITS / 4
    result = run_golden(decoder, prompt, [first])
    assert result.ok and result.n_near_ties == 1 and result.tokens == (second,)
    decoder.tilt = gap + NEAR_TIE_LOGITS * 4
    assert not run_golden(decoder, prompt, [first]).ok


def test_not_a_number_fails() -> None:
    decoder = TiltedDecoder(100)
    decoder.tilt = float("nan")
    assert not run_golden(decoder, [1], [0]).ok
    engine = build_fake_engine(None, context_length=2000)
    broken = TiltedDecoder(engine.tokenizer.vocab_size, context_length=2000)
    broken.tilt = float("nan")
    with pytest.raises(GenerationError, match="not a number"):
        record_golden_of(type(engine)(**{**engine.__dict__, "decoder": broken}))


def _answer_greedily(decoder: FakeDecoder, prompt: list[int], n_tokens: int) -> list[int]:
    tokens: list[int] = []
    for _ in range(n_tokens):
        tokens.append(int(decoder.logits_of([*prompt, *tokens]).argmax()))
    return tokens
