"""Ctrl-C during an answer is a request, and what was there before comes back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from edgeawq.errors import ContextFullError, GenerationError
from edgeawq.tui.answer import catch_interrupt, describe_end, describe_error


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests were started in the background, with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_becomes_a_request(interrupts: None) -> None:
    before = signal.getsignal(signal.SIGINT)
    with catch_interrupt() as cancelled:
        assert not cancelled()
        os.kill(os.getpid(), signal.SIGINT)
        assert cancelled()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()


def test_other_threads_leave_signals_alone() -> None:
    seen: list[bool] = []

    def work() -> None:
        with catch_interrupt() as cancelled:
            seen.append(cancelled())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_notes_and_errors() -> None:
    assert describe_end("stop", used=1, total=2) == ""
    assert "512 of 512" in describe_end("context", used=512, total=512)
    assert "/reset" in describe_error(ContextFullError("too long"))
    assert describe_error(GenerationError("bad", remedy="do this")) == "bad\n→ do this"
    assert describe_error(GenerationError("bad")) == "bad"


def test_a_shift_is_mentioned() -> None:
    assert "oldest part" in describe_end("stop", used=1, total=2, shifts=1)
    assert describe_end("cancelled", used=1, total=2, shifts=1).startswith("(stopped) The context was full")
