"""Markdown that is still being written: rows that are final, and rows that may still change."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from rich.box import SQUARE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeawq.tui.code_rows import CodeBlock
from edgeawq.tui.markdown_lines import StyledLine, style_inline, style_line

_FENCE = re.compile(r"(\s*)(`{3,}|~{3,})\s*([^`\s]*)[^`]*$")
_TABLE_RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$")
_MARKS = frozenset("*_~`")
MAX_TABLE_ROWS = 500


@dataclass
class MarkdownStream:
    """Takes text as it comes; `take_finished` returns rows to print for good, `live_rows` the rest.

    A row is one line of the screen, no wider than `width` cells. Together, the rows taken and the live rows are always
    the whole answer: nothing is printed twice and nothing is lost.
    """

    console: Console
    width: int
    _line: str = ""  # the line of source that is being written
    _finished: list[Text] = field(default_factory=list)
    _n_given: int = 0  # characters of the line's text that have been given away already
    _code: CodeBlock | None = None
    _table: list[str] = field(default_factory=list)
    _styled: tuple[str, StyledLine] | None = None
    _is_blank: bool = True  # whether the last row is empty: two empty rows never follow each other

    def push(self, text: str) -> None:
        """Take more of the answer."""
        *lines, rest = (self._line + text).split("\n")
        for line in lines:
            self._finish_line(line.rstrip("\r"))
        self._line = rest

    def end(self) -> None:
        """The answer is over: everything becomes final, also a code block that was not closed."""
        if self._line:
            self._finish_line(self._line)
            self._line = ""
        self._finish_table()
        self._code = None

    def take_finished(self, *, max_live_rows: int = 0) -> list[Text]:
        """Rows that will not change any more. With `max_live_rows`, a longer paragraph gives its first rows away."""
        if max_live_rows:
            self._give_overflow(max_live_rows)
        rows, self._finished = self._finished, []
        return rows

    def live_rows(self) -> list[Text]:
        """Rows of the line, or the table, that is being written."""
        rows = self._render_table() if self._table else []
        return [*rows, *self._live_line_rows()]

    def _live_line_rows(self) -> list[Text]:
        if not self._line.strip() or (self._table and "|" in self._line):
            return []
        if self._code is not None:
            if self._code.is_end(self._line) or self._line.lstrip()[:1] in ("`", "~"):
                return []
            return self._code.render_line(self._line, self.width, self.console)
        if _may_begin_block(self._line):
            return []
        return self._wrap(self._style_unfinished())

    def _style_unfinished(self) -> StyledLine:
        """The line that is being written, styled; kept until it grows, because a picture needs it twice."""
        if self._styled is None or self._styled[0] != self._line:
            self._styled = (self._line, style_line(self._line, is_finished=False))
        return self._styled[1]

    def _finish_line(self, line: str) -> None:
        if self._code is not None:
            if self._code.is_end(line):
                self._code = None
            else:
                self._add(self._code.take_line(line, self.width, self.console))
            return
        if _is_table_line(line, is_first=not self._table) and len(self._table) < MAX_TABLE_ROWS:
            self._table.append(line)
            return
        self._finish_table()
        fence = _FENCE.match(line)
        if fence:
            self._code = CodeBlock(fence.group(2), fence.group(3), len(fence.group(1)))
            return
        if not line.strip():
            if not self._is_blank and not self._n_given:
                self._add([Text()])
        else:
            self._add(self._wrap(style_line(line)))
        self._n_given = 0

    def _add(self, rows: list[Text]) -> None:
        self._finished += rows
        if rows:
            self._is_blank = not rows[-1].plain.strip()

    def _finish_table(self) -> None:
        if self._table:
            self._add(self._render_table())
            self._table = []

    def _render_table(self) -> list[Text]:
        lines = self._table
        if len(lines) < 2 or not _TABLE_RULE.match(lines[1]):
            return [row for line in lines for row in self._wrap(StyledLine(style_inline(line)))]
        header, body = _split_cells(lines[0]), [_split_cells(line) for line in lines[2:]]
        table = Table(box=SQUARE, show_edge=False, pad_edge=False, header_style="bold", border_style="dim")
        for cell in header:
            table.add_column(style_inline(cell), overflow="fold")
        for cells in body:
            table.add_row(*[style_inline(cell) for cell in (cells + [""] * len(header))[: len(header)]])
        options = self.console.options.update(width=self.width)
        rendered = self.console.render_lines(table, options, pad=False)
        return [Text.assemble(*[(part.text, part.style or "") for part in row]) for row in rendered]

    def _wrap(self, line: StyledLine) -> list[Text]:
        """Rows of one styled line, without the characters that have been given away."""
        if line.is_rule:
            return [Text("─" * self.width, "dim")]
        body, prefix = line.body, line.prefix
        if self._n_given:
            body, prefix = _drop_characters(body, self._n_given), line.indent
            if not body.plain.strip():
                return []
        room = max(4, self.width - prefix.cell_len)
        rows = body.wrap(self.console, room) if body.plain else [Text()]
        for row in rows:
            row.rstrip()
        return [(prefix if index == 0 else line.indent) + row for index, row in enumerate(rows)]

    def _give_overflow(self, max_live_rows: int) -> None:
        """Give away the first rows of a paragraph that is too long to stay live.

        They are counted in characters, marks and spaces left out, so that a mark that closes later changes nothing.
        """
        if self._table or self._code is not None or not self._line.strip() or _may_begin_block(self._line):
            return
        line = self._style_unfinished()
        rows = self._wrap(line)
        n_rows = len(rows) - max_live_rows
        if n_rows <= 0 or line.is_rule:
            return
        for index, row in enumerate(rows[:n_rows]):
            margin = line.indent if self._n_given or index else line.prefix
            self._finished.append(row)
            self._n_given += _count_characters(row.plain[len(margin.plain) :])
        self._is_blank = False


def _may_begin_block(line: str) -> bool:
    """Whether the beginning of a line may turn into a fence, a table or a rule: it is shown when that is decided."""
    text = line.strip()
    return text.startswith(("```", "~~~", "|")) or set(text) <= {"`"} or set(text) <= {"~"} or set(text) <= {"#"}


def _is_table_line(line: str, *, is_first: bool) -> bool:
    text = line.strip()
    return text.startswith("|") if is_first else "|" in text


def _split_cells(line: str) -> list[str]:
    text = line.strip().removeprefix("|")
    text = text[:-1] if text.endswith("|") and not text.endswith("\\|") else text
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", text)]


def _count_characters(text: str) -> int:
    return sum(not char.isspace() and char not in _MARKS for char in text)


def _drop_characters(body: Text, count: int) -> Text:
    plain = body.plain
    index = 0
    while index < len(plain) and count > 0:
        count -= not plain[index].isspace() and plain[index] not in _MARKS
        index += 1
    while index < len(plain) and plain[index].isspace():
        index += 1
    return body[index:] if index < len(plain) else Text()
