from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from edgeawq.errors import UsageError
from edgeawq.quantize.scores import (
    EvaluationSetting,
    TokenScores,
    join_scores,
    make_windows,
    score_logits,
    summarize_scores,
)


@given(st.data(), st.integers(64, 1000), st.integers(64, 300))
def test_strided_windows_score_every_token_but_the_first_once(data: st.DataObject, n_tokens: int, chunk: int) -> None:
    stride = data.draw(st.integers(16, chunk - 1))
    windows = make_windows(torch.arange(n_tokens), EvaluationSetting(n_tokens, chunk, stride))
    scored = [
        int(token) for row, first in zip(windows.token_ids, windows.first_scored, strict=True) for token in row[first:]
    ]
    assert scored == list(range(1, n_tokens))
    assert windows.n_scored == n_tokens - 1
    assert windows.offsets()[0] == 0
    for row, first, offset in zip(windows.token_ids, windows.first_scored, windows.offsets(), strict=True):
        assert torch.equal(row, torch.arange(int(row[0]), int(row[0]) + len(row)))
        assert int(row[first]) == offset + 1
        # The promised context: at least chunk - stride tokens come before, except at the text's beginning.
        assert first >= min(chunk - stride, int(row[first]))


@given(st.integers(64, 1000), st.integers(64, 300))
def test_plain_windows_are_side_by_side(n_tokens: int, chunk: int) -> None:
    windows = make_windows(torch.arange(n_tokens), EvaluationSetting(n_tokens, chunk, chunk))
    length = min(chunk, n_tokens)
    whole = n_tokens // length
    assert windows.token_ids.flatten().tolist() == list(range(whole * length))
    assert windows.first_scored == (1,) * whole
    assert windows.n_scored == whole * (length - 1)


def test_settings_that_make_no_sense() -> None:
    for values, message in (
        ((63, 1024, 1024), "63 tokens are too few"),
        ((1024, 63, 63), "chunk of 63 tokens"),
        ((1024, 128, 129), "stride of 129 tokens is outside 16 … 128"),
        ((1024, 128, 15), "stride of 15"),
    ):
        with pytest.raises(UsageError, match=message):
            EvaluationSetting(*values)
    assert "plain" in EvaluationSetting().describe()
    assert (
        EvaluationSetting(1024, 256, 64).describe() == "strided: windows of 256, each token after at least 192 others"
    )


def test_scores_equal_torch() -> None:
    generator = torch.Generator().manual_seed(int(torch.randint(1 << 30, ())))
    logits, reference = torch.randn(2, 50, 321, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(0, 321, (50,), generator=generator)
    found = score_logits(logits, targets, reference)
    assert torch.allclose(found.losses, F.cross_entropy(logits, targets, reduction="none"), atol=1e-5)
    wanted = F.kl_div(logits.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert found.divergences is not None and found.agreements is not None
    assert torch.allclose(found.divergences, wanted, atol=1e-5)
    assert torch.equal(found.agreements, logits.argmax(-1) == reference.argmax(-1))
    alone = score_logits(logits, targets, None)
    assert alone.divergences is None and torch.equal(alone.losses, found.losses)


def test_no_divergence_from_oneself_and_none_below_zero() -> None:
    logits = torch.randn(200, 100) * 20
    found = score_logits(logits, torch.zeros(200, dtype=torch.int64), logits + 7)
    assert found.divergences is not None and found.agreements is not None
    assert float(found.divergences.min()) >= 0 and float(found.divergences.max()) < 1e-4
    assert bool(found.agreements.all())


def test_probabilities_of_zero_are_no_nan() -> None:
    reference = torch.tensor([[0.0, -math.inf, -200.0]])
    found = score_logits(torch.tensor([[0.0, -math.inf, -1.0]]), torch.tensor([0]), reference)
    assert found.divergences is not None and math.isfinite(float(found.divergences))
    hopeless = score_logits(torch.tensor([[-math.inf, 0.0, 0.0]]), torch.tensor([0]), reference)
    assert hopeless.divergences is not None and float(hopeless.divergences) == math.inf


def test_summary() -> None:
    losses = torch.rand(1000, dtype=torch.float64) * 4
    base = TokenScores(losses - 0.25)
    divergences = torch.arange(1000, dtype=torch.float64)
    agreements = torch.arange(1000) < 750
    score = summarize_scores(
        join_scores(
            TokenScores(losses[part], divergences[part], agreements[part]) for part in (slice(0, 10), slice(10, None))
        ),
        base,
    )
    assert score.perplexity == pytest.approx(math.exp(float(losses.mean())))
    assert score.log_ratio == pytest.approx(0.25)
    assert score.log_ratio_error == pytest.approx(0.0, abs=1e-12)  # the same difference at every token
    assert score.standard_error == pytest.approx(score.perplexity * float(losses.std()) / 1000**0.5)
    assert score.divergence is not None
    assert score.divergence.mean == pytest.approx(499.5)
    assert score.divergence.percentiles == {"50": 499.0, "90": 899.0, "95": 949.0, "99": 989.0, "99.9": 998.0}
    assert score.divergence.largest == 999.0
    assert score.divergence.top1_agreement == 0.75
    assert summarize_scores(TokenScores(torch.tensor([1000.0], dtype=torch.float64))).perplexity == math.inf
