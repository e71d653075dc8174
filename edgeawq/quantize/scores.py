"""How well a model predicts a text, and how far it is from its float original: token by token, then in sum."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from edgeawq.errors import UsageError
from edgeawq.quantize.perplexity import CHUNK, DEFAULT_TOKENS, MIN_TOKENS, exponentiate

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
MIN_STRIDE = 16


@dataclass(frozen=True)
class EvaluationSetting:
    """How a text is cut into windows; stride equal to chunk is "plain", a smaller one "strided"."""

    n_tokens: int = DEFAULT_TOKENS
    chunk: int = CHUNK
    stride: int = CHUNK

    def __post_init__(self) -> None:
        if self.n_tokens < MIN_TOKENS:
            raise UsageError(f"{self.n_tokens} tokens are too few to evaluate; the least is {MIN_TOKENS}")
        if self.chunk < MIN_TOKENS:
            raise UsageError(f"a chunk of {self.chunk} tokens is too short; the shortest is {MIN_TOKENS}")
        if not MIN_STRIDE <= self.stride <= self.chunk:
            raise UsageError(
                f"a stride of {self.stride} tokens is outside {MIN_STRIDE} … {self.chunk}, the chunk",
                remedy="leave --stride out for chunks that do not overlap, or give half of the chunk",
            )

    @property
    def is_strided(self) -> bool:
        """Whether windows overlap."""
        return self.stride < self.chunk

    def describe(self) -> str:
        """The setting in words, for tables."""
        if self.is_strided:
            return f"strided: windows of {self.chunk}, each token after at least {self.chunk - self.stride} others"
        return f"plain: chunks of {self.chunk}, each on its own"


@dataclass(frozen=True)
class Windows:
    """Pieces of a text that a model reads, and which of their tokens count."""

    token_ids: torch.Tensor  # [windows, positions]
    first_scored: tuple[int, ...]  # per window, the position from which tokens are scored, at least 1

    @property
    def n_scored(self) -> int:
        """Tokens whose prediction counts."""
        return sum(self.token_ids.shape[1] - first for first in self.first_scored)

    def offsets(self) -> list[int]:
        """Where the scored tokens of each window begin among all scored ones."""
        found, total = [], 0
        for first in self.first_scored:
            found.append(total)
            total += self.token_ids.shape[1] - first
        return found


def make_windows(tokens: torch.Tensor, setting: EvaluationSetting) -> Windows:
    """Cut tokens [n] into windows; fewer than a chunk give one shorter window.

    Plain: chunks side by side, every token but a chunk's first is scored, an incomplete last chunk is left out.
    Strided: windows begin `stride` tokens apart, the last one reaches back to be full; every token but the text's
    first is scored exactly once, in the first window that holds it.
    """
    tokens = tokens[: setting.n_tokens]
    length = min(setting.chunk, len(tokens))
    if not setting.is_strided:
        whole = len(tokens) // length
        return Windows(tokens[: whole * length].view(whole, length), (1,) * whole)
    starts = list(range(0, len(tokens) - length + 1, setting.stride))
    if starts[-1] + length < len(tokens):
        starts.append(len(tokens) - length)
    first_scored = [1]
    for before, start in zip(starts, starts[1:], strict=False):
        first_scored.append(before + length - start)
    return Windows(torch.stack([tokens[start : start + length] for start in starts]), tuple(first_scored))


@dataclass(frozen=True)
class TokenScores:
    """Of every scored token, in the text's order; the last two are None without a reference."""

    losses: torch.Tensor  # [tokens] float64, negative log likelihood in nats
    divergences: torch.Tensor | None = None  # [tokens] float64, KL(reference ‖ model) in nats
    agreements: torch.Tensor | None = None  # [tokens] bool, the same likeliest token


def score_logits(logits: torch.Tensor, targets: torch.Tensor, reference: torch.Tensor | None) -> TokenScores:
    """Scores of targets [positions] under logits [positions, vocab_size], and against a reference's logits."""
    log_q = logits.float().log_softmax(-1)
    losses = -log_q.gather(1, targets[:, None])[:, 0].double()
    if reference is None:
        return TokenScores(losses)
    log_p = reference.float().log_softmax(-1)
    # Where the reference has no probability left, nothing is lost; 0 · (-inf - …) would be NaN.
    terms = (log_p.exp() * (log_p - log_q)).nan_to_num_(nan=0.0, posinf=math.inf)
    divergences = terms.sum(-1, dtype=torch.float64).clamp_(min=0.0)
    return TokenScores(losses, divergences, log_q.argmax(-1) == log_p.argmax(-1))


def join_scores(parts: Iterable[TokenScores]) -> TokenScores:
    """Scores of consecutive pieces of a text as one."""
    listed = list(parts)
    divergences = [part.divergences for part in listed if part.divergences is not None]
    agreements = [part.agreements for part in listed if part.agreements is not None]
    return TokenScores(
        torch.cat([part.losses for part in listed]),
        torch.cat(divergences) if divergences else None,
        torch.cat(agreements) if agreements else None,
    )


@dataclass(frozen=True)
class Divergence:
    """KL(reference ‖ model) in nats per token, and how often the likeliest token is the same."""

    mean: float
    standard_error: float
    percentiles: dict[str, float]  # "50" … "99.9"
    largest: float
    top1_agreement: float  # share of tokens


@dataclass(frozen=True)
class ModelScore:
    """A text's perplexity under a model; standard errors treat tokens as independent."""

    perplexity: float
    standard_error: float
    n_tokens: int
    log_ratio: float | None = None  # ln(perplexity / reference's)
    log_ratio_error: float | None = None  # its standard error, over the same tokens: far below those of the two
    divergence: Divergence | None = None


def summarize_scores(scores: TokenScores, reference: TokenScores | None = None) -> ModelScore:
    """Means, errors and percentiles of token scores; `reference` are the float model's on the same tokens."""
    mean, error = measure_mean(scores.losses)
    perplexity = exponentiate(mean)
    log_ratio, log_ratio_error = (None, None)
    if reference is not None:
        log_ratio, log_ratio_error = measure_mean(scores.losses - reference.losses)
    return ModelScore(
        perplexity=perplexity,
        standard_error=perplexity * error,
        n_tokens=len(scores.losses),
        log_ratio=log_ratio,
        log_ratio_error=log_ratio_error,
        divergence=summarize_divergence(scores),
    )


def summarize_divergence(scores: TokenScores) -> Divergence | None:
    """The divergence's mean and percentiles; None where there was no reference."""
    if scores.divergences is None or scores.agreements is None:
        return None
    mean, error = measure_mean(scores.divergences)
    quantiles = torch.quantile(
        scores.divergences, torch.tensor(PERCENTILES, dtype=torch.float64) / 100, interpolation="lower"
    )
    return Divergence(
        mean=mean,
        standard_error=error,
        percentiles={f"{percent:g}": float(value) for percent, value in zip(PERCENTILES, quantiles, strict=True)},
        largest=float(scores.divergences.max()),
        top1_agreement=float(scores.agreements.double().mean()),
    )


def measure_mean(values: torch.Tensor) -> tuple[float, float]:
    """Mean of values [n] and its standard error; the error of a single value is 0."""
    mean = float(values.mean())
    return mean, float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
