from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from edgeawq.errors import UsageError
from edgeawq.quantize import evaluate, perplexity
from edgeawq.quantize.evaluate import keep_reference, score_feeder, score_model
from edgeawq.quantize.llama import KVCache, TorchDecoder
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.perplexity import measure_perplexity, stream_model
from edgeawq.quantize.scores import (
    EvaluationSetting,
    TokenScores,
    Windows,
    make_windows,
    score_logits,
    summarize_scores,
)
from tests.quantize.runs import SHAPE
from tests.tiny_models import TinyCheckpoint, make_tiny_model

VOCABULARY = 320


@pytest.fixture(scope="module")
def models() -> tuple[TinyCheckpoint, TinyCheckpoint]:
    """Two models of one shape."""
    return (
        make_tiny_model(1, quantized=False, **SHAPE),
        make_tiny_model(2, quantized=True, group_size=32, **SHAPE),
    )


@pytest.fixture(params=["plain", "strided"])
def windows(request: pytest.FixtureRequest) -> Windows:
    stride = 100 if request.param == "plain" else 41
    return make_windows(torch.randint(0, VOCABULARY, (333,)), EvaluationSetting(333, 100, stride))


def score_whole(models: tuple[TinyCheckpoint, TinyCheckpoint], windows: Windows) -> TokenScores:
    """The same by a whole model's logits, all at once."""
    parts = []
    reference, model = (TorchDecoder(each) for each in models)
    for tokens, first in zip(windows.token_ids, windows.first_scored, strict=True):
        logits, wanted = (each(tokens[None])[0, first - 1 : -1] for each in (model, reference))
        parts.append(score_logits(logits, tokens[first:], wanted))
    losses, divergences = (torch.cat([getattr(part, name) for part in parts]) for name in ("losses", "divergences"))
    return TokenScores(losses, divergences)


@pytest.mark.parametrize("positions", [7, 1000])
def test_equals_the_whole_models(
    models: tuple[TinyCheckpoint, TinyCheckpoint],
    windows: Windows,
    workers: Workers,
    positions: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(perplexity, "HEAD_VALUES", positions * VOCABULARY)
    monkeypatch.setattr(perplexity, "CHUNKS_IN_MEMORY", 2)
    wanted = score_whole(models, windows)
    source, model = (stream_model(each) for each in models)
    seen: list[tuple[int, int]] = []
    with keep_reference(source, windows) as states:
        base = score_model(source, windows, workers, fill=states)
        found = score_model(
            model, windows, workers, reference=states, on_progress=lambda done, total: seen.append((done, total))
        )
        own = score_model(source, windows, workers, reference=states)
    assert found.divergences is not None and wanted.divergences is not None and own.divergences is not None
    assert torch.allclose(found.losses, wanted.losses, rtol=1e-3, atol=1e-3)
    assert torch.allclose(found.divergences, wanted.divergences, rtol=1e-3, atol=1e-3)
    assert float(own.divergences.max()) < 1e-5
    assert base.divergences is None
    assert seen[-1][0] == seen[-1][1] and len(found.losses) == windows.n_scored


def test_plain_perplexity_is_that_of_quantize(models: tuple[TinyCheckpoint, TinyCheckpoint], workers: Workers) -> None:
    windows = make_windows(torch.randint(0, VOCABULARY, (333,)), EvaluationSetting(333, 100, 100))
    model = stream_model(models[1])
    wanted = measure_perplexity(model, windows.token_ids, workers)
    found = summarize_scores(score_model(model, windows, workers))
    assert (found.perplexity, found.n_tokens) == (pytest.approx(wanted.perplexity, rel=1e-5), wanted.n_tokens)


def test_a_feeder_is_scored_alike(
    models: tuple[TinyCheckpoint, TinyCheckpoint],
    windows: Windows,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(perplexity, "HEAD_VALUES", 30 * VOCABULARY)
    source, model = stream_model(models[0]), stream_model(models[1])
    decoder = TorchDecoder(models[1])
    cache: list[KVCache] = []

    def feed(tokens: list[int], is_new: bool) -> torch.Tensor:
        if is_new:
            cache[:] = [KVCache.allocate(decoder.config, 1, 100, torch.float32)]
        assert len(tokens) <= 30
        return torch.cat([decoder(torch.tensor([[token]]), cache[0])[0] for token in tokens])

    seen: list[tuple[int, int]] = []
    with keep_reference(source, windows) as states:
        score_model(source, windows, workers, fill=states)
        wanted = score_model(model, windows, workers, reference=states)
        found = score_feeder(
            feed, windows, VOCABULARY, reference=states, on_progress=lambda done, total: seen.append((done, total))
        )
    assert found.divergences is not None and wanted.divergences is not None
    assert torch.allclose(found.losses, wanted.losses, rtol=1e-3, atol=1e-3)
    assert torch.allclose(found.divergences, wanted.divergences, rtol=1e-3, atol=1e-3)
    assert seen[-1][0] == seen[-1][1]


def test_a_full_disk_is_named(
    models: tuple[TinyCheckpoint, TinyCheckpoint], windows: Windows, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluate.os, "posix_fallocate", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        pytest.raises(UsageError, match=f"cannot be stored in {tmp_path}: No space left"),
        keep_reference(stream_model(models[0]), windows),
    ):
        pass
    assert not list(tmp_path.iterdir())
