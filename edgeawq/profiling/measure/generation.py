"""Time a model where it is used: the runtime's own loop, with the clock at its joints."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeawq.profiling.measure.trace import Marks, Tracer
from edgeawq.runtime.cache_file import CacheLayout
from edgeawq.runtime.decoder import Decoder
from edgeawq.runtime.engine import Engine
from edgeawq.runtime.generate import generate
from edgeawq.runtime.sampler import Logits, Tokens, make_sampler

SEED_TOKENS = 64  # that are really read to fill the cache; further on it holds copies of them
WARM_UP_TOKENS = 2


@dataclass(frozen=True)
class TokenTime:
    """One token of an answer. seconds: from token to token; the rest are parts of it."""

    seconds: float
    forward_seconds: float
    sampling_seconds: float
    counter: int  # the kernels' counter after the native step, 0 without a trace
    counter_seconds: float  # time.perf_counter() at that moment
    marks: Marks | None


@dataclass
class _Clocked:
    """A decoder whose steps are timed; what generation asks of it goes through."""

    decoder: Decoder
    tracer: Tracer | None
    forward_seconds: float = 0.0
    ended: float = 0.0
    marks: list[Marks] = field(default_factory=list)

    @property
    def context_length(self) -> int:
        return self.decoder.context_length

    @property
    def position(self) -> int:
        return self.decoder.position

    @property
    def memory_bytes(self) -> int:
        return self.decoder.memory_bytes

    @property
    def steps_with_fewer_threads(self) -> int:
        return self.decoder.steps_with_fewer_threads

    @property
    def cache_layout(self) -> CacheLayout:
        return self.decoder.cache_layout

    def forward(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        start = time.perf_counter()
        logits = self.decoder.forward(tokens)
        self.ended = time.perf_counter()
        self.forward_seconds = self.ended - start
        if self.tracer is not None:
            self.marks.append(self.tracer.read())
        return logits

    def describe(self, seconds: float, sampling_seconds: float) -> TokenTime:
        """The token that came of the last step."""
        marks = self.marks[-1].since(self.marks[-2]) if self.tracer is not None else None
        counter = self.marks[-1].counter if self.tracer is not None else 0
        return TokenTime(seconds, self.forward_seconds, sampling_seconds, counter, self.ended, marks)

    def forward_draft(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        return self.decoder.forward_draft(tokens)

    def rewind(self, position: int) -> None:
        self.decoder.rewind(position)

    def export_layer(self, layer: int, count: int) -> npt.NDArray[Any]:
        return self.decoder.export_layer(layer, count)

    def import_layers(self, count: int, layers: Iterator[npt.NDArray[Any]]) -> None:
        self.decoder.import_layers(count, layers)

    def close(self) -> None:
        self.decoder.close()


def decoder_of(engine: Engine) -> Decoder:
    """The engine's native decoder."""
    assert isinstance(engine.decoder, Decoder)
    return engine.decoder


def plain_tokens(vocab_size: int, count: int) -> list[int]:
    """Token ids from all over the vocabulary: a prompt whose content does not matter."""
    return [(7919 * index + 11) % vocab_size for index in range(count)]


def fill_cache(decoder: Decoder, count: int) -> None:
    """Let the cache hold `count` tokens, of which at most SEED_TOKENS were computed and the others are copies.

    How fast a step is does not depend on what the cache holds, as long as every position lies in memory of its own.
    """
    decoder.rewind(0)
    if count == 0:
        return
    decoder.forward(plain_tokens(decoder.config.vocab_size, min(count, SEED_TOKENS)))
    if count <= SEED_TOKENS:
        return
    places = np.arange(count) % SEED_TOKENS
    layers = [decoder.export_layer(layer, SEED_TOKENS) for layer in range(decoder.config.n_layers)]
    decoder.import_layers(count, (np.ascontiguousarray(layer[:, :, places]) for layer in layers))


def time_tokens(engine: Engine, count: int, *, tracer: Tracer | None = None) -> list[TokenTime]:
    """Write `count` tokens after what the cache holds, with the model's own sampling, and time each of them.

    The first WARM_UP_TOKENS are left out. The cache is as long afterwards as it was before.
    """
    decoder = decoder_of(engine)
    start = decoder.position
    clocked = _Clocked(decoder, tracer)
    sampler = make_sampler(engine.sampling)
    sampling_seconds = 0.0

    def sample(logits: Logits, tokens: Tokens) -> int:
        nonlocal sampling_seconds
        begun = time.perf_counter()
        token = sampler(logits, tokens)
        sampling_seconds = time.perf_counter() - begun
        return token

    if tracer is not None:
        tracer.switch(True)
    times: list[TokenTime] = []
    try:
        pieces = generate(
            clocked,
            engine.tokenizer,
            [11 % decoder.config.vocab_size],
            sample,
            max_new_tokens=count + WARM_UP_TOKENS + 1,
        )
        before = 0.0
        for index, piece in enumerate(pieces):
            now = time.perf_counter()
            # The forward step between two pieces is the one that the later token was sampled from.
            if index > WARM_UP_TOKENS and piece.token_ids:
                times.append(clocked.describe(now - before, sampling_seconds))
            before = now
    finally:
        if tracer is not None:
            tracer.switch(False)
        decoder.rewind(start)
    return times
