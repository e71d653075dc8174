"""Prompt tokens in, text pieces out: the loop around the decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgeawq.errors import ContextFullError, GenerationError, UsageError
from edgeawq.runtime.sampler import Sampler
from edgeawq.runtime.stopping import StopStringFilter
from edgeawq.runtime.tokenizer import Tokenizer

# How often a long prompt looks up for progress and Ctrl-C: every 128 tokens, about half a second on a Raspberry Pi 4
# with a 1B model. A multiple of the decoder's own batch.
PREFILL_SLICE = 128

FinishReason = Literal["stop", "length", "context", "cancelled"]


class DecoderLike(Protocol):
    """What generation needs of a decoder; `edgeawq.runtime.decoder.Decoder` is the real one."""

    @property
    def context_length(self) -> int: ...

    @property
    def position(self) -> int: ...

    @property
    def memory_bytes(self) -> int: ...

    def forward(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]: ...

    def rewind(self, position: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class GenerationStats:
    """Counts and times of one answer."""

    prompt_tokens: int  # tokens that this answer had to read
    reused_tokens: int  # tokens that were in the KV cache already
    generated_tokens: int  # sampled tokens, the stop token included
    prefill_s: float
    decode_s: float  # from the first sampled token to the end
    time_to_first_token_s: float

    @property
    def prefill_tokens_per_s(self) -> float:
        """Speed of reading the prompt; 0 when nothing was read."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Speed of writing; the first token belongs to the prefill. 0 when fewer than two tokens were written."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s > 0 and self.generated_tokens > 1 else 0.0


@dataclass(frozen=True)
class Piece:
    """A part of the answer. The last piece has `finish_reason`; its text is what was held back until then."""

    text: str
    token_ids: tuple[int, ...]
    stats: GenerationStats
    finish_reason: FinishReason | None = None


def generate(
    decoder: DecoderLike,
    tokenizer: Tokenizer,
    prompt_tokens: Sequence[int],
    sampler: Sampler,
    *,
    max_new_tokens: int | None = None,
    stop_token_ids: frozenset[int] = frozenset(),
    stop_strings: Sequence[str] = (),
    history: Sequence[int] = (),
    on_prefill_progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[Piece]:
    """Append `prompt_tokens` to the decoder's context and yield the answer as it is written.

    `history` are the tokens before the prompt (they count for the repetition penalty only). The last piece, and only
    it, carries a finish reason: "stop" (a stop token or string), "length" (max_new_tokens), "context" (the window is
    full) or "cancelled". `on_prefill_progress(done, total)` is called while the prompt is read.
    The last sampled token is not in the KV cache when this ends; `decoder.position` says how far the cache goes.
    Raises ContextFullError when the prompt does not fit and leaves the decoder as it was.
    """
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UsageError(f"the answer may have {max_new_tokens} tokens, which is less than 1", remedy="give 1 or more")
    if not prompt_tokens:
        raise GenerationError("the prompt has no tokens", remedy="write something")
    _check_fits(decoder, len(prompt_tokens))
    filter_ = StopStringFilter(stop_strings)
    return _generate(
        decoder,
        tokenizer,
        prompt_tokens,
        sampler,
        filter_,
        max_new_tokens=max_new_tokens,
        stop_token_ids=stop_token_ids,
        history=history,
        on_prefill_progress=on_prefill_progress or (lambda done, total: None),
        cancelled=cancelled or (lambda: False),
    )


def _generate(
    decoder: DecoderLike,
    tokenizer: Tokenizer,
    prompt_tokens: Sequence[int],
    sampler: Sampler,
    filter_: StopStringFilter,
    *,
    max_new_tokens: int | None,
    stop_token_ids: frozenset[int],
    history: Sequence[int],
    on_prefill_progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> Iterator[Piece]:
    clock = _Clock(n_prompt=len(prompt_tokens), n_reused=decoder.position)
    logits: npt.NDArray[np.float32] | None = None
    on_prefill_progress(0, len(prompt_tokens))
    for start in range(0, len(prompt_tokens), PREFILL_SLICE):
        if cancelled():
            yield Piece("", (), clock.read(), "cancelled")
            return
        piece = prompt_tokens[start : start + PREFILL_SLICE]
        logits = decoder.forward(piece)
        on_prefill_progress(start + len(piece), len(prompt_tokens))
    assert logits is not None
    clock.end_prefill()

    seen = _TokenBuffer([*history, *prompt_tokens], capacity=decoder.context_length + 1)
    stream = tokenizer.stream()
    finish_reason: FinishReason | None = None
    while finish_reason is None:
        if cancelled():
            finish_reason = "cancelled"
            break
        token = sampler(logits, seen.view())
        seen.append(token)
        clock.count_token()
        text = ""
        if token in stop_token_ids:
            finish_reason = "stop"
        else:
            text, stopped = filter_.push(stream.push(token))
            if stopped:
                yield Piece(text, (token,), clock.read(), "stop")
                return
            if max_new_tokens is not None and clock.n_generated >= max_new_tokens:
                finish_reason = "length"
            elif decoder.position >= decoder.context_length:
                finish_reason = "context"
        yield Piece(text, (token,), clock.read())
        if finish_reason is None:
            logits = decoder.forward([token])

    text, stopped = filter_.push(stream.flush())
    if not stopped:
        text += filter_.flush()
    yield Piece(text, (), clock.read(), finish_reason)


def _check_fits(decoder: DecoderLike, n_tokens: int) -> None:
    used, total = decoder.position, decoder.context_length
    if used + n_tokens > total:
        raise ContextFullError(
            f"the conversation needs {used + n_tokens} tokens, but the context has room for {total}",
            remedy="give less text, or open the model with a larger --context-length",
        )


class _Clock:
    """Collects the figures of GenerationStats while an answer is written."""

    def __init__(self, *, n_prompt: int, n_reused: int) -> None:
        self.n_generated = 0
        self._n_prompt = n_prompt
        self._n_reused = n_reused
        self._start = time.perf_counter()
        self._prefilled: float | None = None
        self._first: float | None = None
        self._last = self._start

    def end_prefill(self) -> None:
        self._prefilled = time.perf_counter()

    def count_token(self) -> None:
        self._last = time.perf_counter()
        if self._first is None:
            self._first = self._last
        self.n_generated += 1

    def read(self) -> GenerationStats:
        now = time.perf_counter()
        return GenerationStats(
            prompt_tokens=self._n_prompt,
            reused_tokens=self._n_reused,
            generated_tokens=self.n_generated,
            prefill_s=(self._prefilled or now) - self._start,
            decode_s=0.0 if self._first is None else self._last - self._first,
            time_to_first_token_s=0.0 if self._first is None else self._first - self._start,
        )


class _TokenBuffer:
    """Token ids in one growing array, so that the sampler gets them without a copy per token."""

    def __init__(self, tokens: Sequence[int], *, capacity: int) -> None:
        self._data = np.empty(max(capacity, len(tokens) + 1), dtype=np.int32)  # [capacity]
        self._data[: len(tokens)] = tokens
        self._n = len(tokens)

    def append(self, token: int) -> None:
        if self._n == self._data.shape[0]:
            self._data = np.concatenate([self._data, np.empty_like(self._data)])
        self._data[self._n] = token
        self._n += 1

    def view(self) -> npt.NDArray[np.int32]:
        return self._data[: self._n]
