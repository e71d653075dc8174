"""Prompt tokens in, text pieces out: the loop around the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgeawq.errors import ContextFullError, GenerationError, UsageError
from edgeawq.runtime.cache_file import CacheLayout
from edgeawq.runtime.sampler import Sampler
from edgeawq.runtime.speculate import NgramDrafter
from edgeawq.runtime.starts import note_answer
from edgeawq.runtime.stats import Clock, GenerationStats
from edgeawq.runtime.stopping import StopStringFilter
from edgeawq.runtime.tokenizer import Tokenizer
from edgeawq.runtime.window import Window

# How often a long prompt looks up for progress and Ctrl-C: every 128 tokens, about half a second on a Raspberry Pi 4
# with a 1B model. A multiple of the decoder's own batch.
PREFILL_SLICE = 128

FinishReason = Literal["stop", "length", "context", "cancelled"]
OnFull = Literal["stop", "shift"]


class DecoderLike(Protocol):
    """What generation needs of a decoder; `edgeawq.runtime.decoder.Decoder` is the real one."""

    @property
    def context_length(self) -> int: ...

    @property
    def position(self) -> int: ...

    @property
    def memory_bytes(self) -> int: ...

    @property
    def steps_with_fewer_threads(self) -> int: ...

    def forward(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]: ...

    def forward_draft(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]: ...

    def rewind(self, position: int) -> None: ...

    @property
    def cache_layout(self) -> CacheLayout: ...

    def export_layer(self, layer: int, count: int) -> npt.NDArray[Any]: ...

    def import_layers(self, count: int, layers: Iterator[npt.NDArray[Any]]) -> None: ...

    def close(self) -> None: ...


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
    speculate: bool = False,
    on_full: OnFull = "stop",
    n_keep: int = 0,
    on_shift: Callable[[list[int]], None] | None = None,
    on_prefill_progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[Piece]:
    """Append `prompt_tokens` to the decoder's context and yield the answer as it is written.

    `history` are the tokens before the prompt (they count for the repetition penalty, and drafts are taken from them).
    `speculate` tries drafts from the text so far (`edgeawq.runtime.speculate`). The last piece, and only it, carries a
    finish reason: "stop" (a stop token or string), "length" (max_new_tokens), "context" (the window is full) or
    "cancelled". `on_prefill_progress(done, total)` is called while the prompt is read.
    With on_full="shift" a full window keeps its first `n_keep` tokens, drops the older half of the others and goes on;
    `on_shift` gets the tokens that are left, which are then what the cache holds.
    The last sampled token is not in the KV cache when this ends; `decoder.position` says how far the cache goes.
    Raises ContextFullError when the prompt does not fit and leaves the decoder as it was.
    """
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UsageError(f"the answer may have {max_new_tokens} tokens, which is less than 1", remedy="give 1 or more")
    if not prompt_tokens:
        raise GenerationError("the prompt has no tokens", remedy="write something")
    check_fits(decoder.position + len(prompt_tokens), decoder.context_length)
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
        speculate=speculate,
        on_full=on_full,
        n_keep=n_keep,
        on_shift=on_shift or (lambda tokens: None),
        on_prefill_progress=on_prefill_progress or (lambda done, total: None),
        cancelled=cancelled or (lambda: False),
    )


def check_fits(n_tokens: int, context_length: int) -> None:
    """Raise ContextFullError when a conversation is longer than the context."""
    if n_tokens > context_length:
        raise ContextFullError(
            f"the conversation needs {n_tokens} tokens, but the context has room for {context_length}",
            remedy="give less text, or open the model with a larger --context-length",
        )


def read_tokens(
    decoder: DecoderLike,
    tokens: Sequence[int],
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> npt.NDArray[np.float32] | None:
    """Append tokens in slices and return the logits after the last one; None when it was cancelled between two."""
    logits: npt.NDArray[np.float32] | None = None
    on_progress(0, len(tokens))
    for start in range(0, len(tokens), PREFILL_SLICE):
        if cancelled():
            return None
        piece = tokens[start : start + PREFILL_SLICE]
        logits = decoder.forward(piece)
        on_progress(start + len(piece), len(tokens))
    return logits


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
    speculate: bool,
    on_full: OnFull,
    n_keep: int,
    on_shift: Callable[[list[int]], None],
    on_prefill_progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> Iterator[Piece]:
    clock = Clock(n_prompt=len(prompt_tokens), n_reused=decoder.position)
    logits = read_tokens(decoder, prompt_tokens, on_progress=on_prefill_progress, cancelled=cancelled)
    if logits is None:
        yield Piece("", (), clock.read(), "cancelled")
        return
    clock.end_prefill()
    note_answer()

    def read(tokens: list[int]) -> npt.NDArray[np.float32] | None:
        return read_tokens(decoder, tokens, cancelled=cancelled)

    text_so_far = [*history, *prompt_tokens]
    window = Window(decoder, text_so_far, logits, NgramDrafter(text_so_far) if speculate else None)
    stream = tokenizer.stream()
    finish_reason: FinishReason | None = None
    try:
        while finish_reason is None:
            if cancelled():
                finish_reason = "cancelled"
                break
            token = sampler(window.logits, window.tokens)
            clock.count_token(accepted=window.append(token))
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
                elif window.is_full and on_full == "stop":
                    finish_reason = "context"
            yield Piece(text, (token,), clock.read())
            if finish_reason is None and window.is_full:
                clock.n_shifts += 1
                on_shift(window.shift(n_keep, read))
            elif finish_reason is None:
                n_left = decoder.context_length if max_new_tokens is None else max_new_tokens - clock.n_generated - 1
                clock.n_drafted += window.advance(n_left)
    finally:
        window.close()  # also when the reader goes away

    text, stopped = filter_.push(stream.flush())
    if not stopped:
        text += filter_.flush()
    yield Piece(text, (), clock.read(), finish_reason)
