"""Where the commands write: results to standard output, progress and errors to standard error."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from typing import TYPE_CHECKING

from edgeawq.errors import EdgeawqError

if TYPE_CHECKING:
    from rich.console import Console


def get_console() -> Console:
    """The console for results (standard output). NO_COLOR and a pipe are respected by rich itself."""
    from rich.console import Console

    return Console()


def get_error_console() -> Console:
    """The console for progress and notes (standard error), so that a pipe sees only results."""
    from rich.console import Console

    return Console(stderr=True)


def print_error(error: EdgeawqError) -> None:
    """Write a failure to standard error: what happened, and what to do next. A pipe gets a line for each."""
    width = _terminal_width()
    print(wrap_words(f"edgeawq: {error.what}", width, ""), file=sys.stderr)
    if error.remedy:
        print(wrap_words(f"  → {error.remedy}", width, "    "), file=sys.stderr)


def wrap_words(text: str, width: int, indent: str) -> str:
    """Break `text` between words, the further lines behind `indent`; width 0: not at all.

    A command in backticks is not broken, so that it can be copied.
    """
    if not width:
        return text
    lines: list[str] = []
    for paragraph in text.split("\n"):
        # Not a space for textwrap, and as wide as one.
        kept = re.sub(r"`[^`\n]*`", lambda command: command.group().replace(" ", "\0"), paragraph)
        start = indent if lines else ""
        lines += textwrap.wrap(
            start + kept, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(lines).replace("\0", " ")


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # not a terminal, or no file at all
        return 0
