"""The chat in tmux: a real terminal with real scrollback, reflow and bracketed paste."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tui.terminal import ROOT

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed: apt-get install tmux"),
]


class Pane:
    """One tmux server with one pane that runs the chat around the fake engine."""

    def __init__(self, folder: Path, n_columns: int, n_rows: int, *arguments: str) -> None:
        self._socket = str(folder / "tmux.sock")
        program = " ".join(["exec", sys.executable, "-m", "tests.tui.fake_chat", *arguments])
        environment = {**os.environ, "XDG_STATE_HOME": str(folder), "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
        environment.pop("TMUX", None)
        size = ["-x", str(n_columns), "-y", str(n_rows)]
        self._run("-f", "/dev/null", "new-session", "-d", "-s", "chat", *size, program, env=environment)
        self._run("set-option", "-t", "chat", "history-limit", "50000")

    def send(self, *keys: str) -> None:
        """Press keys, by tmux's names or as text."""
        self._run("send-keys", "-t", "chat", *keys)

    def paste(self, text: str) -> None:
        """Paste as a terminal with bracketed paste does."""
        self._run("set-buffer", text)
        self._run("paste-buffer", "-p", "-t", "chat")

    def resize(self, n_columns: int, n_rows: int) -> None:
        """Change the size of the window."""
        self._run("resize-window", "-t", "chat", "-x", str(n_columns), "-y", str(n_rows))

    def read(self, *, everything: bool = False) -> list[str]:
        """Rows of the screen, or of scrollback and screen."""
        shown = self._run("capture-pane", "-p", "-t", "chat", *(["-S", "-"] if everything else []))
        return [row.rstrip() for row in shown.splitlines()]

    def wait_for(self, is_there: Callable[[list[str]], bool], timeout_s: float = 60.0) -> list[str]:
        """Wait until the predicate holds for the screen."""
        deadline = time.monotonic() + timeout_s
        while not is_there(rows := self.read()):
            assert time.monotonic() < deadline, "\n".join(rows)
            time.sleep(0.1)
        return rows

    def close(self) -> None:
        """End the server and what runs in it."""
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], capture_output=True, check=False)

    def _run(self, *arguments: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            ["tmux", "-S", self._socket, *arguments], capture_output=True, text=True, check=True, cwd=ROOT, env=env
        )
        return done.stdout


Start = Callable[..., Pane]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    panes: list[Pane] = []

    def build(n_columns: int, n_rows: int, *arguments: str) -> Pane:
        pane = Pane(tmp_path, n_columns, n_rows, *arguments)
        panes.append(pane)
        pane.wait_for(lambda rows: "›" in rows)
        return pane

    yield build
    for pane in panes:
        pane.close()


def is_asking(rows: list[str]) -> bool:
    """Whether an empty prompt is on the screen, below an answer."""
    return "›" in rows and "tok/s" in "".join(rows[rows.index("›") :])


@pytest.mark.parametrize("n_columns, n_rows", [(80, 24), (40, 10)])
def test_scrollback_holds_every_line_once(start: Start, n_columns: int, n_rows: int) -> None:
    pane = start(n_columns, n_rows, "0.001")
    pane.send("count 70", "Enter")
    pane.wait_for(is_asking)
    rows = [row for row in pane.read(everything=True) if row.startswith("line ") and "," not in row]
    assert rows == [f"line {index}" for index in range(1, 71)]
    pane.send("words 150", "Enter")
    pane.wait_for(lambda rows: "word150" in " ".join(rows) and is_asking(rows))
    words = " ".join(pane.read(everything=True)).partition("› words 150")[2].partition("›")[0].split()
    assert words == [f"word{index}" for index in range(1, 151)]


def test_a_paste_of_several_lines_is_one_message(start: Start) -> None:
    pane = start(80, 24)
    pane.paste("first\nsecond\nthird")
    pane.wait_for(lambda rows: "  third" in rows)
    pane.send("Enter")
    pane.wait_for(lambda rows: "You said: first" in rows and "third" in rows)


@pytest.mark.parametrize("size", [(50, 24), (100, 30), (70, 12)])
def test_resizing_during_an_answer_loses_nothing(start: Start, size: tuple[int, int]) -> None:
    pane = start(80, 24, "0.01")
    pane.send("count 40", "Enter")
    pane.wait_for(lambda rows: "line 12" in rows)
    pane.resize(*size)
    pane.wait_for(lambda rows: "line 40" in rows and is_asking(rows))
    rows = [row for row in pane.read(everything=True) if row.startswith("line ") and "," not in row]
    assert list(dict.fromkeys(rows)) == [f"line {index}" for index in range(1, 41)]
    # tmux wraps its rows anew before it tells the program: a row drawn in between may stand there twice, but only one.
    assert len(rows) <= 41


def test_ctrl_c_and_ctrl_d(start: Start) -> None:
    pane = start(80, 24, "0.02")
    pane.send("words 900", "Enter")
    pane.wait_for(lambda rows: "word7" in " ".join(rows))
    pane.send("C-c")
    pane.wait_for(lambda rows: "(stopped)" in rows and is_asking(rows))
    pane.send("C-c")
    pane.wait_for(lambda rows: "quits" in rows[-1])
    pane.send("C-d")
    deadline = time.monotonic() + 30
    while subprocess.run(["tmux", "-S", pane._socket, "has-session"], capture_output=True, check=False).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
