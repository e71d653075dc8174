"""The last rows of the screen, redrawn in place while everything above them is final."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

_UP = "\x1b[{}A"
_CLEAR_LINE_END = "\x1b[K"
_CLEAR_BELOW = "\x1b[J"
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class LiveRegion:
    """Prints final rows, and keeps a few live rows below them.

    Each update is one write: up to the first live row, then every row over its old self. Rows stay one cell short of
    the screen's width, so that the terminal never wraps one by itself.
    """

    def __init__(self, stream: TextIO, console: Console) -> None:
        self._stream = stream
        self._painter = Console(
            file=io.StringIO(),
            force_terminal=True,
            color_system=console.color_system,  # type: ignore[arg-type]
            no_color=console.no_color,
            width=10_000,
            legacy_windows=False,
        )
        self._shown: list[str] = []  # the live rows as they were written
        self._n_cells: list[int] = []  # and their widths

    def update(self, finished: Sequence[Text], live: Sequence[Text]) -> None:
        """Print `finished` for good where the live rows began, and `live` below."""
        painted = [self._paint(row) for row in live]
        if not finished and painted == self._shown:
            return
        n_old_rows = self._count_shown_rows()
        parts = [_HIDE_CURSOR, "\r"]
        if n_old_rows > 1:
            parts.append(_UP.format(n_old_rows - 1))
        for row in finished:
            parts += [self._paint(row), _CLEAR_LINE_END, "\r\n"]
        if len(finished) + len(painted) < n_old_rows or not painted:
            parts.append(_CLEAR_BELOW)
        parts.append("\r\n".join(row + _CLEAR_LINE_END for row in painted))
        self._stream.write("".join(parts))
        self._stream.flush()
        self._shown = painted
        self._n_cells = [row.cell_len for row in live]

    def close(self, finished: Sequence[Text] = ()) -> None:
        """Take the live rows away, print `finished`, and give the cursor back at the start of a row."""
        self.update(finished, ())
        self._stream.write("\r" + _SHOW_CURSOR)
        self._stream.flush()

    def _count_shown_rows(self) -> int:
        """Rows of the screen that the live rows take, also after the window became narrower and they wrapped."""
        n_columns = _count_columns(self._stream)
        return sum(max(1, -(-n_cells // n_columns)) for n_cells in self._n_cells)

    def _paint(self, row: Text) -> str:
        with self._painter.capture() as capture:
            self._painter.print(row, end="", soft_wrap=True, highlight=False, markup=False, emoji=False)
        return capture.get()


def crop_row(row: Text, n_cells: int) -> Text:
    """The row cut to `n_cells` cells, with an ellipsis where it was longer."""
    if cell_len(row.plain) > n_cells:
        row = row.copy()
        row.truncate(max(n_cells, 1), overflow="ellipsis")
    return row


def _count_columns(stream: TextIO) -> int:
    try:
        n_columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        n_columns = 0
    return n_columns or 80  # a serial line says 0; rich, which makes the rows, takes it for 80 as well
