from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edgeawq.errors import QuantizationError
from edgeawq.quantize import self_text
from edgeawq.quantize.calibration import make_encoder
from edgeawq.quantize.llama import TorchDecoder
from edgeawq.quantize.parallel import Workers, start_workers
from edgeawq.quantize.self_text import (
    OPENINGS,
    QUESTIONS,
    WritingTask,
    make_prompts,
    sample_tokens,
    write_calibration,
    write_texts,
)
from tests.quantize.runs import SHAPE
from tests.tiny_models import TinyCheckpoint, make_tiny_model


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> TinyCheckpoint:
    monkeypatch.setattr(self_text, "TEXT_LENGTH", 40)
    return make_tiny_model(0, quantized=False, **{**SHAPE, "n_layers": 1})


def test_the_seed_decides_the_text(model: TinyCheckpoint, workers: Workers) -> None:
    seen: list[tuple[int, int]] = []
    first = write_calibration(model, 800, 64, 5, workers, lambda done, total: seen.append((done, total)))
    assert first.source == "self-generated"
    assert first.n_documents == 20
    assert first.n_tokens_found == 800
    assert first.token_ids.shape == (13, 64)
    assert int(first.token_ids.min()) >= 0
    assert int(first.token_ids.max()) < model.config.vocab_size
    assert seen
    assert all(total == 800 and 0 < done <= 800 for done, total in seen)
    with start_workers(1) as single:
        again = write_calibration(model, 800, 64, 5, single)
    assert torch.equal(first.token_ids, again.token_ids)
    other = write_calibration(model, 800, 64, 6, workers)
    assert not torch.equal(first.token_ids, other.token_ids)


def test_prompts_are_questions_and_openings_in_turn(model: TinyCheckpoint) -> None:
    encode = make_encoder(model.tokenizer, model.config)
    prompts = make_prompts(model, encode, 4, 1000)
    question = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    wanted = [question.format(QUESTIONS[0]), OPENINGS[0], question.format(QUESTIONS[1]), OPENINGS[1]]
    assert [list(prompt) for prompt in prompts] == [encode(text) for text in wanted]
    assert max(map(len, make_prompts(model, encode, 100, 7))) == 7


@pytest.mark.parametrize("template", [None, "{% for %}", "{{ raise_exception('no') }}"])
def test_openings_do_where_there_is_no_usable_template(model: TinyCheckpoint, template: str | None) -> None:
    model.tokenizer = replace(model.tokenizer, chat_template=template)
    encode = make_encoder(model.tokenizer, model.config)
    prompts = make_prompts(model, encode, len(OPENINGS), 1000)
    assert [list(prompt) for prompt in prompts] == [encode(text) for text in OPENINGS]


def test_texts_start_with_their_prompts_and_go_on_greedily_alike(
    model: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With sampling made greedy, a batch of prompts of different lengths gives what each gives alone, uncached."""
    monkeypatch.setattr(self_text, "sample_tokens", lambda logits, generator: logits.argmax(-1))
    decoder = TorchDecoder(model, torch.float64)
    prompts = ((5, 9, 200), (17,), (40, 41, 42, 43, 44, 45))
    with torch.no_grad():
        written = write_texts(decoder, WritingTask(prompts, 1), 12)
    for row, prompt in zip(written.tolist(), prompts, strict=True):
        tokens = list(prompt)
        while len(tokens) < 12:
            tokens.append(int(decoder(torch.tensor([tokens]))[0, -1].argmax()))
        assert row == tokens


def test_sampling_leaves_out_the_unlikely() -> None:
    logits = torch.tensor([[0.0, 1.0, -8.0, 0.5]]).expand(4000, 4)
    sampled = sample_tokens(logits.clone(), torch.Generator().manual_seed(1))
    shares = sampled.bincount(minlength=4) / 4000
    wanted = torch.tensor([0.0, 1.0, -torch.inf, 0.5]).softmax(0)
    assert shares[2] == 0
    torch.testing.assert_close(shares, wanted, atol=0.04, rtol=0)


def test_a_model_that_yields_nan_is_refused(model: TinyCheckpoint, workers: Workers) -> None:
    model.tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    with pytest.raises(QuantizationError, match="NaN") as caught:
        write_calibration(model, 300, 64, 0, workers)
    assert caught.value.remedy
