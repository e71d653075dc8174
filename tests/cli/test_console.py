"""What people read in a terminal: errors broken between words, commands that can be copied."""

from __future__ import annotations

import sys

import pexpect
import pytest

from edgeawq.cli.console import print_error, wrap_words
from edgeawq.errors import DeployError


def test_lines_end_between_words() -> None:
    text = "the host key of pi4 is not known, and " * 5 + "a-very-long-name-" * 6
    lines = wrap_words(f"  → {text}", 60, "    ").split("\n")
    assert all(len(line) <= 60 for line in lines[:-1]) and len(lines) > 3
    assert all(line.startswith("    ") for line in lines[1:]) and lines[0].startswith("  → ")
    assert " ".join(" ".join(lines).split()) == f"→ {text}"


def test_a_command_stays_on_one_line() -> None:
    command = "`ssh-keygen -R [raspberrypi.local]:2222 -f /home/me/.ssh/known_hosts`"
    for width in (20, 40, 60):
        assert command in wrap_words(f"only if you know why: {command} forgets the old one", width, "    ")
    assert wrap_words("first line\nsecond line", 20, "  ") == "first line\n  second line"
    assert wrap_words("x y " * 100, 0, "") == "x y " * 100


def test_a_pipe_gets_each_part_on_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    print_error(DeployError("what " * 60, remedy="remedy " * 60))
    assert capfd.readouterr().err.count("\n") == 2


def test_a_terminal_gets_its_width() -> None:
    program = "from edgeawq.cli.console import print_error as p; from edgeawq.errors import DeployError as E; "
    program += "p(E('what ' * 60, remedy='remedy ' * 60))"
    child = pexpect.spawn(sys.executable, ["-c", program], encoding="utf-8", dimensions=(24, 80))
    lines = child.read().splitlines()
    child.wait()
    assert len(lines) > 8 and max(map(len, lines)) <= 80
