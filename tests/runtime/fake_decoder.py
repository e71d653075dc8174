"""A decoder without a model: deterministic, instant, and it remembers what it was asked to do."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edgeawq.errors import ContextFullError
from edgeawq.runtime.cache_file import CacheLayout


class FakeDecoder:
    """Has the interface of `edgeawq.runtime.decoder.Decoder`.

    `choose_next` maps the context to the token that gets the highest logit; without it the logits are random numbers
    seeded with the context.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        context_length: int = 512,
        choose_next: Callable[[tuple[int, ...]], int] | None = None,
        delay_s: float = 0.0,
        memory_bytes: int = 97 << 20,
    ) -> None:
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.memory_bytes = memory_bytes
        self.steps_with_fewer_threads = 0
        self.context: list[int] = []
        self.calls: list[int] = []  # number of tokens of each forward()
        self.is_closed = False
        self._choose_next = choose_next
        self._delay_s = delay_s

    @property
    def position(self) -> int:
        return len(self.context)

    def forward(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        assert not self.is_closed
        assert len(tokens) > 0
        assert all(0 <= int(token) < self.vocab_size for token in tokens)
        if len(self.context) + len(tokens) > self.context_length:
            raise ContextFullError("full")
        if self._delay_s:
            time.sleep(self._delay_s)
        self.context += [int(token) for token in tokens]
        self.calls.append(len(tokens))
        return self.logits_of(self.context)

    def forward_draft(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each of the tokens, float32 [tokens, vocab]."""
        n_before = len(self.context)
        self.forward(tokens)
        return np.stack([self.logits_of(self.context[: n_before + i + 1]) for i in range(len(tokens))])

    def logits_of(self, context: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after `context`, float32 [vocab]."""
        if self._choose_next is not None:
            logits = np.full(self.vocab_size, -50.0, dtype=np.float32)
            logits[self._choose_next(tuple(context))] = 10.0
            return logits
        seed = zlib.crc32(np.asarray(context, dtype=np.int32).tobytes())
        return np.random.default_rng(seed).normal(0.0, 3.0, self.vocab_size).astype(np.float32)

    def rewind(self, position: int) -> None:
        assert 0 <= position <= len(self.context)
        del self.context[position:]

    @property
    def cache_layout(self) -> CacheLayout:
        return CacheLayout("f32", 1, 1, 1)

    def export_layer(self, layer: int, count: int) -> npt.NDArray[np.float32]:
        """The "cache" of a token is its id."""
        assert layer == 0
        return np.broadcast_to(np.asarray(self.context[:count], dtype=np.float32), (2, 1, count)).reshape(
            2, 1, count, 1
        )

    def import_layers(self, count: int, layers: Iterator[npt.NDArray[np.float32]]) -> None:
        self.context = []
        (layer,) = layers
        assert layer.shape == (2, 1, count, 1)
        self.context = [int(token) for token in layer[0].ravel()]

    def close(self) -> None:
        self.is_closed = True
