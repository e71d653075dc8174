"""A program in an emulated terminal: send keys, read the screen as a person would."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte

ROOT = Path(__file__).parents[2]
ENTER, ALT_ENTER, CTRL_C, CTRL_D = "\r", "\x1b\r", "\x03", "\x04"


class Terminal:
    """Runs `python -m MODULE ARGUMENTS…` on a pseudo terminal of `n_columns` by `n_rows`."""

    def __init__(
        self, module: str, *arguments: str, state: Path, n_columns: int = 80, n_rows: int = 24, **environment: str
    ) -> None:
        self.screen = pyte.HistoryScreen(n_columns, n_rows, history=100_000, ratio=1)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        inherited = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
        self._child = pexpect.spawn(
            sys.executable,
            ["-m", module, *arguments],
            cwd=str(ROOT),
            dimensions=(n_rows, n_columns),
            timeout=30,
            env={
                **inherited,
                "TERM": "xterm-256color",
                "XDG_STATE_HOME": str(state),
                "PYTHONPATH": str(ROOT),
                **environment,
            },
        )

        # Programs ask where the cursor is; a terminal answers.
        self.screen.write_process_input = self._child.send

    def send(self, keys: str) -> None:
        """Press keys."""
        self._child.send(keys)

    def wait_for(self, text: str | Callable[[str], bool], timeout_s: float = 30.0) -> str:
        """Wait until `text` is on the screen, or the predicate holds; return the screen."""
        is_there = text if callable(text) else (lambda shown: text in shown)
        deadline = time.monotonic() + timeout_s
        while True:
            self._read()
            shown = "\n".join(row.rstrip() for row in self.screen.display)
            if is_there(shown):
                return shown
            if time.monotonic() > deadline or not self._child.isalive():
                self._read()
                shown = "\n".join(row.rstrip() for row in self.screen.display)
                assert is_there(shown), f"not on the screen: {text!r}\n{shown}"
                return shown

    def wait_for_exit(self) -> int:
        """Wait until the program ends; return its exit code."""
        self._child.expect(pexpect.EOF)
        self._feed(self._child.before or b"")
        self._child.close()
        return int(self._child.exitstatus if self._child.exitstatus is not None else -1)

    def read_everything(self) -> list[str]:
        """Scrollback and screen from top to bottom."""
        self._read()
        top = ["".join(line[x].data for x in range(self.screen.columns)).rstrip() for line in self.screen.history.top]
        return [*top, *(row.rstrip() for row in self.screen.display)]

    def resize(self, n_columns: int, n_rows: int) -> None:
        """Change the size of the window."""
        self._child.setwinsize(n_rows, n_columns)
        self.screen.resize(n_rows, n_columns)

    def close(self) -> None:
        """End the program, whatever it does."""
        self._child.close(force=True)

    def _read(self) -> None:
        while True:
            try:
                self._feed(self._child.read_nonblocking(65536, timeout=0.05))
            except (pexpect.TIMEOUT, pexpect.EOF):
                return

    def _feed(self, data: bytes) -> None:
        self.raw += data
        self._stream.feed(data)
