"""Progress bars for work that is measured in tokens: done, rate, time left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

NAME_WIDTH = 24


class LateBar(Progress):
    """Bars that appear with the first row: an error before it leaves no blank line."""

    def start(self) -> None:
        """Show the rows, if there are any."""
        if self.tasks:
            super().start()

    def add_task(self, *arguments: Any, **options: Any) -> TaskID:
        """Add a row, as rich does."""
        number = super().add_task(*arguments, **options)
        self.start()
        return number

    def stop(self) -> None:
        """Leave the rows as they are."""
        if self.tasks:
            super().stop()


class RateColumn(ProgressColumn):
    """Tokens per second since the row began."""

    def render(self, task: Task) -> Text:
        """Rich calls this for each row."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} tokens/s" if speed else "", style="progress.data.speed")


def make_token_bar(console: Console) -> Progress:
    """One row per model: name, bar, percent, tokens per second, time left; fits 80 columns."""
    return LateBar(
        TextColumn(f"{{task.description:<{NAME_WIDTH}.{NAME_WIDTH}}}"),
        BarColumn(bar_width=14),
        TaskProgressColumn(),
        RateColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
        # Blocks of a large model take long: the rate is a mean over minutes, or it would jump.
        speed_estimate_period=300,
    )


def follow(bar: Progress, name: str, n_tokens: int) -> Callable[[int, int], None]:
    """A row for n_tokens tokens; returns what to call with steps done and in all."""
    row = bar.add_task(name, total=n_tokens)

    def show(done: int, total: int) -> None:
        bar.update(row, completed=n_tokens * done / max(total, 1))

    return show
