"""The chat without a terminal that can move its cursor: a pipe, TERM=dumb, or one answer. No escape codes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TextIO

from edgeawq.errors import EdgeawqError, UsageError
from edgeawq.runtime.generate import FinishReason
from edgeawq.runtime.sampler import Sampler
from edgeawq.runtime.session import ChatSession
from edgeawq.tui.answer import catch_interrupt, describe_error, describe_last
from edgeawq.tui.commands import parse_command, run_command, unescape_message
from edgeawq.tui.safe_text import strip_controls

MAX_PIPED_CHARS = 4 << 20


def read_piped_question(stream: TextIO) -> str:
    """All that a pipe delivers, as one message; UsageError when it is empty or endless."""
    text = stream.read(MAX_PIPED_CHARS + 1)
    if len(text) > MAX_PIPED_CHARS:
        raise UsageError(
            f"standard input has more than the limit of {MAX_PIPED_CHARS} characters", remedy="pipe a shorter text"
        )
    if not text.strip():
        raise UsageError("standard input is empty", remedy="echo 'your question' | edgeawq chat …, or use --prompt")
    return text.strip()


def answer_once(
    session: ChatSession, question: str, sampler: Sampler, *, max_new_tokens: int | None = None
) -> FinishReason | None:
    """Write one answer to standard output as it comes; returns why it ended. Errors are left to the caller."""
    with catch_interrupt() as cancelled:
        return _write_answer(session, question, sampler, max_new_tokens, cancelled)


def run_plain_chat(session: ChatSession, sampler: Sampler, *, max_new_tokens: int | None = None) -> int:
    """Read messages line by line from standard input until it ends; returns the exit code."""
    for line in _read_lines():
        if not line.strip():
            continue
        command = parse_command(line)
        if command is not None:
            outcome = run_command(session, *command)
            if outcome.quits:
                break
            print(outcome.text, file=sys.stderr if outcome.is_error else sys.stdout, flush=True)
            continue
        try:
            reason = answer_once(session, unescape_message(line.strip()), sampler, max_new_tokens=max_new_tokens)
        except EdgeawqError as error:
            print(describe_error(error), file=sys.stderr, flush=True)
            continue
        note = describe_last(session, reason)
        if note:
            print(note, file=sys.stderr, flush=True)
    return 0


def _write_answer(
    session: ChatSession, question: str, sampler: Sampler, max_new_tokens: int | None, cancelled: object
) -> FinishReason | None:
    assert callable(cancelled)
    is_terminal = sys.stdout.isatty()
    reason: FinishReason | None = None
    ends_line = True
    for piece in session.reply(question, sampler, max_new_tokens=max_new_tokens, cancelled=cancelled):
        text = strip_controls(piece.text) if is_terminal else piece.text
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            ends_line = text.endswith("\n")
        reason = piece.finish_reason
    if not ends_line:
        print(flush=True)
    return reason


def _read_lines() -> Iterator[str]:
    """Lines from standard input, each after a prompt on standard error; Ctrl-C or the end of input ends them."""
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            line = ""
        if not line:
            print(file=sys.stderr)
            return
        yield line.rstrip("\n")
