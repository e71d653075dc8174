"""Trying again after a lost connection, with pauses that grow and that differ between hosts."""

from __future__ import annotations

import random as random_module
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from edgeawq.deploy.transport import Transport
from edgeawq.errors import EdgeawqError, TransferError, UnreachableError, UsageError

T = TypeVar("T")

# What another connection may cure. A wrong key, a refused login, an unfit or locked device, a failed health check or a
# wrong argument stays what it is.
RETRIED = (UnreachableError, TransferError)


@dataclass(frozen=True)
class RetryPolicy:
    """How often to try, and how long to wait in between."""

    attempts: int = 5  # in a row without progress; 1 is no second try
    first_delay_s: float = 1.0  # doubled after every failure
    max_delay_s: float = 30.0
    jitter: bool = True  # wait a random part of the delay: many hosts must not come back at the same moment

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_delay_s < 0 or self.max_delay_s < self.first_delay_s:
            raise UsageError(f"{self} makes no sense", remedy="use at least 1 attempt, and delays that grow")

    def delay_s(self, failures: int, random: Callable[[], float]) -> float:
        """Return the pause after that many failures in a row (the first is 1); `random` gives 0 … 1."""
        # Bounded before it is raised: 2 to the power of many failures is no float any more.
        longest = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(failures - 1, 60))
        return longest * random() if self.jitter else longest


def run_with_retry(
    connect: Callable[[], Transport],
    work: Callable[[Transport], T],
    policy: RetryPolicy,
    on_retry: Callable[[int, float, EdgeawqError], None],
    *,
    progress: Callable[[], int] = lambda: 0,
    sleep: Callable[[float], None] = time.sleep,
    random: Callable[[], float] = random_module.random,
) -> T:
    """Connect, do `work` and close; do all of it again when the connection fails, as `policy` allows.

    progress: a number that grows with what has been done for good (bytes that the device has): an attempt that moved
    it does not count as a failure, so that a long upload over a bad line ends at some time.
    on_retry: called before each pause with the number of failures in a row, the seconds to wait, and the error.
    The last error is raised when there are no attempts left, every other kind of error at once.
    """
    failures = 0
    reached = progress()
    while True:
        try:
            with connect() as transport:
                return work(transport)
        except RETRIED as error:
            now = progress()
            failures = 1 if now > reached else failures + 1
            reached = max(reached, now)
            if failures >= policy.attempts:
                raise
            delay_s = policy.delay_s(failures, random)
            on_retry(failures, delay_s, error)
        sleep(delay_s)
