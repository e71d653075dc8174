"""What the commands that talk to devices have in common: options, questions, and how progress is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.status import Status

Function = TypeVar("Function", bound=Callable[..., Any])


def inventory_option(function: Function) -> Function:
    """Add --inventory."""
    return click.option(
        "--inventory",
        metavar="FILE",
        help="The inventory to use instead of the nearest edgeawq.toml.",
    )(function)


def json_option(function: Function) -> Function:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def timeout_option(function: Function) -> Function:
    """Add --timeout."""
    return click.option(
        "--timeout",
        "health_timeout_s",
        type=click.FloatRange(1.0, 86400.0),
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="The longest that the health check on the device may take.",
    )(function)


def break_lock_option(function: Function) -> Function:
    """Add --break-lock."""
    return click.option(
        "--break-lock", is_flag=True, help="Take over the device's lock from a push that is known to be dead."
    )(function)


def format_bytes(size: float) -> str:
    """Return a size for people: "712 B", "3.4 MB", "1.2 GB" (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


class PushDisplay:
    """Shows how a push goes on: the step, and while bytes move a bar with rate and time left."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._status: Status | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self.sent_bytes = 0  # in all attempts

    @property
    def is_watched(self) -> bool:
        """Whether somebody may be looking on."""
        return self._console.is_terminal and not self._quiet

    def stage(self, text: str) -> None:
        """Show the name of the step that begins."""
        if self._quiet:
            return
        if not self._console.is_terminal:
            self._console.print(f"{text} …", highlight=False)
        elif self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        else:
            self._status.update(text)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        if not self._quiet:
            self._console.print(f"note: {text}", highlight=False, markup=False)

    def upload_begins(self, files: int, total_bytes: int) -> None:
        """Show the bar."""
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._stop_status()
        if not self.is_watched:
            return
        self._progress = Progress(
            TextColumn("uploading"),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task("upload", total=total_bytes)

    def upload_advanced(self, count: int) -> None:
        """Move the bar."""
        self.sent_bytes += count
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, count)

    def upload_ended(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._stop_status()
        self.upload_ended()

    def __enter__(self) -> PushDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
