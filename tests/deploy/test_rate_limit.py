from __future__ import annotations

import random
import threading
import time

import pytest

from edgeawq.deploy.rate_limit import BURST_S, RateLimiter, parse_rate
from edgeawq.errors import UsageError


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.mark.parametrize(
    ("text", "rate"),
    [("10M", 10_000_000), ("500k", 500_000), ("1.5G", 1_500_000_000), ("250000", 250_000), (" 2 MB/s ", 2_000_000)],
)
def test_reads_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "-1M", "0", "999", "10T", "1e9", "10 Mbit", "5000G", "1" * 40, "١٠M"])
def test_refuses_what_is_no_rate(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_rate(text)
    assert "10M" in caught.value.remedy


def test_no_stretch_of_time_carries_more_than_the_rate_and_one_burst() -> None:
    for _ in range(20):
        clock = Clock()
        rate = random.randrange(1000, 10_000_000)
        limiter = RateLimiter(rate, clock=clock, sleep=clock.sleep)
        sent: list[tuple[float, int]] = []
        for _ in range(200):
            size = random.randrange(1, max(2, rate // 3))
            limiter.acquire(size)
            sent.append((clock.now, size))
            if random.random() < 0.1:
                clock.now += random.random() * 3  # the sender has been busy with something else
        for first in range(0, 200, 17):
            total = 0
            for moment, size in sent[first:]:
                total += size
                assert total <= rate * (moment - sent[first][0] + BURST_S) + sent[first][1] + 1


def test_without_pauses_the_rate_is_reached() -> None:
    clock = Clock()
    limiter = RateLimiter(1_000_000, clock=clock, sleep=clock.sleep)
    began = clock.now
    for _ in range(1000):
        limiter.acquire(10_000)
    assert clock.now - began == pytest.approx(10.0 - BURST_S)


def test_a_piece_larger_than_the_bucket_passes() -> None:
    clock = Clock()
    limiter = RateLimiter(1000, clock=clock, sleep=clock.sleep)
    limiter.acquire(50_000)
    assert clock.now == pytest.approx(1050.0 - BURST_S)
    limiter.acquire(0)
    assert clock.now == pytest.approx(1050.0 - BURST_S)


def test_threads_share_one_rate() -> None:
    rate, n_threads = 2_000_000, 8
    limiter = RateLimiter(rate)

    def send() -> None:
        for _ in range(10):
            limiter.acquire(10_000)

    threads = [threading.Thread(target=send) for _ in range(n_threads)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # 800 kB at 2 MB/s less the burst: never faster. How much slower is the machine's affair.
    assert time.monotonic() - began >= 0.4 - BURST_S - 0.01


def test_pieces_fit_the_rate() -> None:
    assert RateLimiter(1000).block_bytes == 250
    assert RateLimiter(10**9).block_bytes == 1 << 20
    with pytest.raises(UsageError):
        RateLimiter(0)
