"""A limit on bytes per second that several threads share: a token bucket."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from edgeawq.errors import UsageError

MIN_RATE = 1_000
MAX_RATE = 10**12
# What may go at once after a pause: enough for whole packets, too little to be seen as a burst by a slow line.
BURST_S = 0.25
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def parse_rate(text: str) -> int:
    """Return bytes per second from "10M", "500k", "1.5G" or "250000" (powers of 1000). UsageError otherwise."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([kKmMgG]?)(?:[bB](?:/s)?)?\s*", text, re.ASCII)
    rate = int(float(match.group(1)) * _FACTORS[match.group(2).lower()]) if match else 0
    if not MIN_RATE <= rate <= MAX_RATE:
        raise UsageError(
            f"{text!r} is not a rate between {MIN_RATE} and {MAX_RATE} bytes/s",
            remedy="write bytes per second, for example 500k, 10M or 1.5G (powers of 1000)",
        )
    return rate


class RateLimiter:
    """Hands out `rate` bytes per second to whoever asks, in the order in which they ask.

    clock and sleep: in seconds, for tests. Used by any number of threads.
    """

    def __init__(
        self,
        rate: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if rate < 1:
            raise UsageError(f"a rate of {rate} bytes/s lets nothing through", remedy="use at least 1")
        self.rate = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._paid_until = clock() - BURST_S  # the moment up to which the rate has been handed out

    @property
    def block_bytes(self) -> int:
        """The largest piece to ask for at once, so that a slow limit still moves several times a second."""
        return max(1, min(1 << 20, int(self.rate * BURST_S)))

    def acquire(self, n_bytes: int) -> None:
        """Wait until `n_bytes` may be sent. Any size: more than fits the bucket is paid for by waiting longer."""
        if n_bytes <= 0:
            return
        with self._lock:
            now = self._clock()
            # What was not used for a while is lost, but for the burst.
            self._paid_until = max(self._paid_until, now - BURST_S) + n_bytes / self.rate
            wait_s = self._paid_until - now
        if wait_s > 0:
            self._sleep(wait_s)
