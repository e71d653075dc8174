"""Code blocks of an answer, highlighted line by line while they are written."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

INDENT = "  "
# A line's colours depend on the lines before it (an open string, say). So many are looked at: enough in practice, and
# the time for a line does not grow with the block.
N_CONTEXT_LINES = 40


@dataclass
class CodeBlock:
    """A fenced block that is open."""

    fence: str  # "```" or longer, or tildes
    language: str
    n_indent: int  # columns by which the fence is indented, which its lines leave out
    _lines: list[str] = field(default_factory=list)

    def is_end(self, line: str) -> bool:
        """Whether `line` closes the block."""
        text = line.strip()
        return len(text) >= len(self.fence) and set(text) == {self.fence[0]}

    def take_line(self, line: str, width: int, console: Console) -> list[Text]:
        """Add a finished line and return its rows."""
        rows = self.render_line(line, width, console)
        self._lines = [*self._lines, self._dedent(line)][-N_CONTEXT_LINES:]
        return rows

    def render_line(self, line: str, width: int, console: Console) -> list[Text]:
        """Rows of `line` as the next one of the block; long lines are folded, so that nothing is cut off."""
        line = self._dedent(line).expandtabs(4)
        text = self._highlight(line) if console.color_system and not console.no_color else Text(line)
        room = max(4, width - len(INDENT))
        rows: list[Text] = []
        while True:
            n_chars = _count_fitting(text.plain, room)
            rows.append(Text(INDENT) + text[:n_chars])
            text = text[n_chars:] if n_chars < len(text) else Text()
            if not text.plain:
                return rows

    def _dedent(self, line: str) -> str:
        n_blank = len(line) - len(line.lstrip(" "))
        return line[min(n_blank, self.n_indent) :]

    def _highlight(self, line: str) -> Text:
        if not self.language:
            return Text(line)
        lines = self._syntax.highlight("\n".join([*self._lines, line])).split("\n", allow_blank=True)
        found = lines[len(self._lines)] if len(self._lines) < len(lines) else Text(line)
        # A lexer may normalize what it reads; the answer's own characters come first.
        return found if found.plain == line else Text(line)

    @cached_property
    def _syntax(self) -> Syntax:
        return Syntax("", self.language, theme="ansi_dark", background_color="default", word_wrap=False)


def _count_fitting(text: str, n_cells: int) -> int:
    """How many characters of `text` fit into `n_cells` cells, at least one."""
    from rich.cells import get_character_cell_size

    used = 0
    for index, char in enumerate(text):
        used += get_character_cell_size(char)
        if used > n_cells:
            return max(index, 1)
    return max(len(text), 1)
