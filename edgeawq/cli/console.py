"""Where the commands write: results to standard output, progress and errors to standard error."""

from __future__ import annotations

import sys
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
    """Write a failure as two plain lines: what happened, and what to do next."""
    print(f"edgeawq: {error.what}", file=sys.stderr)
    if error.remedy:
        print(f"  → {error.remedy}", file=sys.stderr)
