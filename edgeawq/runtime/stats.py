"""Counts and times of one answer."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationStats:
    """Counts and times of one answer."""

    prompt_tokens: int  # tokens that this answer had to read
    reused_tokens: int  # tokens that were in the KV cache already
    generated_tokens: int  # sampled tokens, the stop token included
    prefill_s: float
    decode_s: float  # from the first sampled token to the end
    time_to_first_token_s: float
    drafted_tokens: int = 0  # tokens that speculation proposed and the model checked
    accepted_tokens: int = 0  # … and that it would have written itself
    shifts: int = 0  # how often the oldest part was dropped because the context was full

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that were accepted; 0 when none was drafted."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Speed of reading the prompt; 0 when nothing was read."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Speed of writing; the first token belongs to the prefill. 0 when fewer than two tokens were written."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s > 0 and self.generated_tokens > 1 else 0.0


class Clock:
    """Collects the figures of GenerationStats while an answer is written."""

    def __init__(self, *, n_prompt: int, n_reused: int) -> None:
        self.n_generated = 0
        self.n_accepted = 0
        self.n_drafted = 0
        self.n_shifts = 0
        self._n_prompt = n_prompt
        self._n_reused = n_reused
        self._start = time.perf_counter()
        self._prefilled: float | None = None
        self._first: float | None = None
        self._last = self._start

    def end_prefill(self) -> None:
        """The prompt is read."""
        self._prefilled = time.perf_counter()

    def count_token(self, *, accepted: bool) -> None:
        """A token was sampled; `accepted` when a draft had it."""
        self.n_accepted += accepted
        self._last = time.perf_counter()
        if self._first is None:
            self._first = self._last
        self.n_generated += 1

    def read(self) -> GenerationStats:
        """The figures so far."""
        now = time.perf_counter()
        return GenerationStats(
            prompt_tokens=self._n_prompt,
            reused_tokens=self._n_reused,
            generated_tokens=self.n_generated,
            prefill_s=(self._prefilled or now) - self._start,
            decode_s=0.0 if self._first is None else self._last - self._first,
            time_to_first_token_s=0.0 if self._first is None else self._first - self._start,
            drafted_tokens=self.n_drafted,
            accepted_tokens=self.n_accepted,
            shifts=self.n_shifts,
        )
