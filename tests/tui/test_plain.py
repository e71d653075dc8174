"""The chat as a plain pipe: text in, text out, no escape codes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgeawq.errors import UsageError
from edgeawq.tui import plain
from edgeawq.tui.plain import read_piped_question
from tests.tui.terminal import ROOT


def run(text: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "tests.tui.fake_chat", *arguments],
        input=text.encode(),
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )


def test_lines_are_answered_without_escape_codes() -> None:
    done = run("tour\n\n/rest\nhello\n/quit\nnever\n")
    assert done.returncode == 0
    assert b"**capital of France**" in done.stdout  # Markdown stays Markdown in a pipe
    assert b"You said: hello\n" in done.stdout and b"never" not in done.stdout
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"Did you mean /reset?" in done.stderr


def test_a_full_context_is_a_line_on_standard_error() -> None:
    done = run("words 400\nand now?\n", "0", "120")
    assert done.returncode == 0
    assert b"context is full (120 of 120 tokens)" in done.stderr
    assert "→ /reset starts afresh" in done.stderr.decode()


def test_an_interrupt_stops_the_answer_and_not_the_program() -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.tui.fake_chat", "0.01"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    with child:
        child.stdin.write(b"words 2000\nhello\n")
        child.stdin.flush()
        assert child.stdout.read(5) == b"word1"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert b"(stopped)" in err
    assert out.endswith(b"You said: hello\n")
    assert child.returncode == 0


def test_a_question_from_a_pipe() -> None:
    assert read_piped_question(io.StringIO(" two\nlines \n")) == "two\nlines"
    with pytest.raises(UsageError, match="empty"):
        read_piped_question(io.StringIO(" \n"))


def test_a_question_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "MAX_PIPED_CHARS", 100)
    with Path("/dev/zero").open(encoding="latin-1") as stream, pytest.raises(UsageError, match="limit of 100"):
        read_piped_question(stream)
