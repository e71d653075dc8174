from __future__ import annotations

import threading
import time

import pytest
import torch

from edgeawq.quantize.parallel import count_cores, start_workers


def test_results_keep_their_order_and_torch_its_settings() -> None:
    before = torch.get_num_threads()
    barrier = threading.Barrier(3)

    def work(item: int) -> tuple[int, int, bool]:
        barrier.wait(timeout=30)  # only passes when three run at once
        return item * item, torch.get_num_threads(), torch.is_grad_enabled()

    with start_workers(3) as workers:
        assert workers.count == 3
        assert workers.run(work, range(6)) == [(item * item, 1, False) for item in range(6)]
    assert torch.get_num_threads() == before
    assert torch.is_grad_enabled()


def test_a_failure_is_raised_and_the_rest_not_started() -> None:
    started = []

    def work(item: int) -> None:
        started.append(item)
        if item == 1:
            raise ValueError("item 1")
        time.sleep(0.002)  # else all may be done before the failure is seen

    with start_workers(1) as workers, pytest.raises(ValueError, match="item 1"):
        workers.run(work, range(1000))
    assert len(started) < 1000


def test_zero_means_every_core() -> None:
    with start_workers() as workers:
        assert workers.count == count_cores() >= 1
