"""Run one answer so that Ctrl-C stops it and nothing else."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from edgeawq.errors import ContextFullError, EdgeawqError
from edgeawq.runtime.generate import FinishReason
from edgeawq.runtime.session import ChatSession


@dataclass
class StopRequest:
    """Becomes true when someone asks the answer to end."""

    is_set: bool = False

    def __call__(self) -> bool:
        return self.is_set


@contextmanager
def catch_interrupt() -> Iterator[StopRequest]:
    """Turn Ctrl-C into a request while the block runs; the handler that was there comes back afterwards."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(signal_number: int, frame: FrameType | None) -> None:
        request.is_set = True

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def quiet_terminal() -> Iterator[None]:
    """Keys pressed while no prompt is shown are kept for the next one, and not echoed into an answer."""
    if not sys.stdin.isatty():
        yield
        return
    import termios

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    changed = termios.tcgetattr(descriptor)
    changed[0] &= ~termios.ICRNL  # Enter stays what the prompt takes for Enter
    changed[3] &= ~(termios.ECHO | termios.ICANON)
    changed[3] |= termios.NOFLSH  # Ctrl-C stops the answer, it does not throw away what was typed
    changed[6][termios.VSUSP] = b"\x00"  # stopping the program in the middle would leave the terminal like this
    termios.tcsetattr(descriptor, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def describe_end(finish_reason: FinishReason | None, *, used: int, total: int, shifts: int = 0) -> str:
    """The note under an answer that did not end by itself, or for which old text was dropped; "" for any other."""
    dropped = "The context was full: the oldest part of the conversation was dropped." if shifts else ""
    return " ".join(filter(None, [_describe_reason(finish_reason, used, total), dropped]))


def _describe_reason(finish_reason: FinishReason | None, used: int, total: int) -> str:
    if finish_reason == "cancelled":
        return "(stopped)"
    if finish_reason == "length":
        return "(cut off: --max-tokens is reached)"
    if finish_reason == "context":
        return f"The context is full ({used} of {total} tokens). /reset starts afresh."
    return ""


def describe_last(session: ChatSession, finish_reason: FinishReason | None) -> str:
    """`describe_end` of the newest answer of a session."""
    shifts = session.last_stats.shifts if session.last_stats else 0
    return describe_end(finish_reason, used=session.context_used, total=session.context_length, shifts=shifts)


def describe_error(error: EdgeawqError) -> str:
    """An error as one or two lines: what happened, and what to do."""
    remedy = error.remedy
    if isinstance(error, ContextFullError):
        remedy = "/reset starts afresh; or write less, or begin with a larger --context-length"
    return f"{error.what}\n→ {remedy}" if remedy else error.what
