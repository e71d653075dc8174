"""Choose the next token from the logits.

Order of the filters, as in Hugging Face's `generate`: repetition penalty, temperature, top_k, top_p, min_p. Each of the
last three keeps the most likely tokens, so together they keep a prefix of the vocabulary sorted by falling
probability; ties are broken by the smaller token id. Only as much of that order is computed as is needed: a full sort
of 49 k logits takes longer than all the rest.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeawq.errors import GenerationError, UsageError

Logits = npt.NDArray[np.float32]
Tokens = Sequence[int] | npt.NDArray[np.int32]
Sampler = Callable[[Logits, Tokens], int]

_N_COLUMNS = 64  # logits are searched as [_N_COLUMNS, vocab / _N_COLUMNS]: the maximum over the short axis is one pass
_FIRST_NUCLEUS = 128  # tokens tried first for top_p; the usual nucleus is smaller
_BINS_PER_NAT = 64.0  # bins of the second try: a step of 1/64 in the natural logarithm of the probability …
_N_BINS = 2048  # … down to exp(-32) of the best one


@dataclass(frozen=True)
class SamplerSettings:
    """How the next token is drawn. temperature 0 means always the most likely one; the other defaults mean "off"."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0.0, 100.0, "0 is greedy, 0.7 is usual")
        _check_range("top_p", self.top_p, 0.0, 1.0, "1 keeps every token, 0.9 is usual")
        _check_range("min_p", self.min_p, 0.0, 1.0, "0 keeps every token, 0.05 is usual")
        _check_range("repetition_penalty", self.repetition_penalty, 0.01, 100.0, "1 is off, 1.1 is usual")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise UsageError(
                f"top_k is {self.top_k!r}, which is not a whole number from 0 up",
                remedy="0 keeps every token, 40 is usual",
            )
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0):
            raise UsageError(f"seed is {self.seed!r}, which is not a whole number from 0 up", remedy="leave it out")


def make_sampler(settings: SamplerSettings) -> Sampler:
    """A function (logits [vocab], tokens so far) → token id; the logits are not changed.

    The same seed and the same calls give the same tokens. Raises GenerationError for logits that hold NaN or +inf, or
    nothing but -inf.
    """
    if settings.temperature == 0:

        def sample_greedy(logits: Logits, history: Tokens) -> int:
            penalized = apply_repetition_penalty(logits, history, settings.repetition_penalty)
            token = int(penalized.argmax())
            _check_top(float(penalized[token]))
            return token

        return sample_greedy

    draw = random.Random(settings.seed).random  # numpy's generators cost 20 ms more to import

    def sample(logits: Logits, history: Tokens) -> int:
        penalized = apply_repetition_penalty(logits, history, settings.repetition_penalty)
        return _draw_token(penalized, settings, draw())

    return sample


def apply_repetition_penalty(logits: Logits, history: Tokens, penalty: float) -> Logits:
    """Divide positive and multiply negative logits of the tokens in `history` by `penalty` (CTRL, section 4.1)."""
    if penalty == 1.0 or len(history) == 0:
        return logits
    tokens = np.asarray(history, dtype=np.int32)
    penalized: Logits = logits.copy()
    seen = logits[tokens]  # [len(history)]; a token that comes twice is written twice with the same value
    penalized[tokens] = np.where(seen > 0, seen / penalty, seen * penalty)
    return penalized


def take_largest(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    """Indices of the `count` largest values, falling; equal values in the order of their index."""
    n_values = values.shape[0]
    count = min(count, n_values)
    floor = _find_floor(values, count)
    candidates = np.flatnonzero(values >= floor)
    order = np.argsort(-values[candidates], kind="stable")
    return candidates[order[:count]]


def _find_floor(values: npt.NDArray[np.float32], count: int) -> float:
    """A bound that at least `count` values reach, and few more: the count-th largest of the columns' maxima.

    `count` columns have a maximum at or above it, so at least `count` values are.
    """
    n_blocks = values.shape[0] // _N_COLUMNS
    if count * 2 > n_blocks:
        return float(np.partition(values, values.shape[0] - count)[values.shape[0] - count])
    maxima = values[: n_blocks * _N_COLUMNS].reshape(_N_COLUMNS, n_blocks).max(axis=0)  # [n_blocks]
    return float(np.partition(maxima, n_blocks - count)[n_blocks - count])


def _draw_token(logits: Logits, settings: SamplerSettings, uniform: float) -> int:
    top = float(logits.max())
    _check_top(top)
    scale = 1.0 / settings.temperature
    top_k = settings.top_k if 0 < settings.top_k < logits.shape[0] else 0

    if top_k:
        tokens = take_largest(logits, top_k)
        weights = _weigh(logits[tokens], top, scale)
        if settings.top_p < 1.0:
            weights = _cut_nucleus(weights, settings.top_p * float(weights.sum()))
    elif settings.top_p < 1.0:
        tokens, weights = _find_nucleus(logits, top, scale, settings.top_p)
    elif settings.min_p > 0.0:
        # Probability relative to the best one is exp((logit - top) / T); log keeps the comparison in logits.
        tokens = np.flatnonzero(logits >= np.float32(top + settings.temperature * math.log(settings.min_p)))
        weights = _weigh(logits[tokens], top, scale)
    else:
        return _pick(_weigh(logits, top, scale), uniform)

    if settings.min_p > 0.0:
        kept = weights >= np.float32(settings.min_p)
        tokens, weights = tokens[: kept.shape[0]][kept], weights[kept]
    return int(tokens[_pick(weights, uniform)])


def _weigh(logits: Logits, top: float, scale: float) -> npt.NDArray[np.float32]:
    """exp((logits - top) / temperature): probabilities up to one common factor, the largest is 1."""
    weights: npt.NDArray[np.float32] = (logits - np.float32(top)) * np.float32(scale)
    np.exp(weights, out=weights)
    return weights


def _find_nucleus(
    logits: Logits, top: float, scale: float, top_p: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """The smallest set of most likely tokens whose probabilities reach `top_p`, and their weights, in any order."""
    weights = _weigh(logits, top, scale)
    total = _sum_weights(weights)
    enough = top_p * total
    tokens = take_largest(logits, _FIRST_NUCLEUS)
    if _sum_weights(weights[tokens]) < enough and tokens.shape[0] < logits.shape[0]:
        # All tokens below this weight together have less than 1 - top_p, so none of them is in the nucleus.
        floor = np.float32((total - enough) / logits.shape[0] * 0.999)
        tokens = np.flatnonzero(weights >= floor)
        kept = tokens[_select_wide_nucleus(logits[tokens], weights[tokens], top, scale, enough)]
        return kept, weights[kept]
    falling = _cut_nucleus(weights[tokens], enough)
    return tokens[: falling.shape[0]], falling


def _select_wide_nucleus(
    logits: Logits, weights: npt.NDArray[np.float32], top: float, scale: float, enough: float
) -> npt.NDArray[np.intp]:
    """Indices of the nucleus of a flat distribution, thousands of tokens, without sorting them.

    Tokens go into bins by their distance from the best one; whole bins are kept up to the one where the sum crosses
    `enough`, and only that bin is sorted. The bin number falls with the logit, so equal logits share a bin.
    """
    distance = (np.float32(top) - logits) * np.float32(scale * _BINS_PER_NAT)
    bins = np.minimum(distance, np.float32(_N_BINS - 1)).astype(np.intp)  # [candidates], 0 … _N_BINS - 1
    mass = np.cumsum(np.bincount(bins, weights=weights, minlength=_N_BINS))  # up to and with each bin
    crossing = min(int(np.searchsorted(mass, enough)), _N_BINS - 1)
    whole = np.flatnonzero(bins < crossing)
    last = np.flatnonzero(bins == crossing)
    last = last[np.argsort(-logits[last], kind="stable")]
    missing = enough - (float(mass[crossing - 1]) if crossing else 0.0)
    return np.concatenate([whole, last[: _cut_nucleus(weights[last], missing).shape[0]]])


def _cut_nucleus(weights: npt.NDArray[np.float32], enough: float) -> npt.NDArray[np.float32]:
    """The shortest beginning of the falling `weights` whose sum reaches `enough`; at least one."""
    n_kept = int(np.searchsorted(np.cumsum(weights, dtype=np.float64), enough)) + 1
    return weights[:n_kept]


def _sum_weights(weights: npt.NDArray[np.float32]) -> float:
    # Summed in float64 the last bits of 49 k small weights are not lost; pairwise float32 sums would do for top_p.
    return float(weights.sum(dtype=np.float64))


def _pick(weights: npt.NDArray[np.float32], uniform: float) -> int:
    """The index drawn with probability proportional to `weights`, for `uniform` in [0, 1).

    Two steps, block and then element, because a running sum over the whole vocabulary is ten times as slow.
    """
    n_weights = weights.shape[0]
    first = 0
    if n_weights > 4096:
        n_blocks = n_weights // 512
        padded = weights[: n_blocks * 512].reshape(n_blocks, 512)
        sums = np.append(padded.sum(axis=1, dtype=np.float64), weights[n_blocks * 512 :].sum(dtype=np.float64))
        ends = np.cumsum(sums)
        target = uniform * float(ends[-1])
        block = min(int(np.searchsorted(ends, target, side="right")), n_blocks)
        target -= float(ends[block - 1]) if block else 0.0
        first = block * 512
        weights = weights[first : first + 512]
        inside = np.cumsum(weights, dtype=np.float64)
    else:
        inside = np.cumsum(weights, dtype=np.float64)
        target = uniform * float(inside[-1])
    index: int = min(int(np.searchsorted(inside, target, side="right")), weights.shape[0] - 1)
    # Rounding may point just past the last weight, or at one that is 0: take the nearest one that can be drawn.
    while index > 0 and weights[index] == 0:
        index -= 1
    return first + index


def _check_top(top: float) -> None:
    """NaN compares as the largest, so the largest logit tells whether all can be used."""
    if math.isfinite(top):
        return
    if top == -math.inf:
        what = "the model gave every token the probability 0"
    else:
        what = f"the model's output is not a number (the largest logit is {top})"
    raise GenerationError(what, remedy="the bundle may be damaged: pack and push it again")


def _check_range(name: str, value: object, low: float, high: float, hint: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= float(value) <= high:  # type: ignore[arg-type]
        raise UsageError(f"{name} is {value!r}, outside {low:g} to {high:g}", remedy=hint)
