"""What a terminal shows after any sequence of updates, read back from an emulated one."""

from __future__ import annotations

import io

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from edgeawq.tui.live_region import LiveRegion, crop_row


def build(n_columns: int, n_rows: int) -> tuple[LiveRegion, pyte.HistoryScreen, io.StringIO, pyte.Stream]:
    screen = pyte.HistoryScreen(n_columns, n_rows, history=10_000, ratio=1)
    out = io.StringIO()
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=n_columns)
    return LiveRegion(out, console), screen, out, pyte.Stream(screen)


def read_all(screen: pyte.HistoryScreen) -> list[str]:
    """Scrollback and screen, top to bottom, without empty rows at the end."""
    history = ["".join(line[x].data for x in range(screen.columns)).rstrip() for line in screen.history.top]
    rows = [*history, *(row.rstrip() for row in screen.display)]
    while rows and not rows[-1]:
        rows.pop()
    return rows


@given(
    steps=st.lists(
        st.tuples(st.lists(st.integers(0, 38), max_size=14), st.lists(st.integers(0, 38), max_size=7)), max_size=12
    )
)
@settings(deadline=None, max_examples=60)
def test_final_rows_are_there_once_and_live_rows_last(steps: list[tuple[list[int], list[int]]]) -> None:
    region, screen, out, stream = build(40, 9)
    printed: list[str] = []
    for index, (finished_sizes, live_sizes) in enumerate(steps):
        finished = [f"{index}:{n}:".ljust(size + 1, "f")[:39] for n, size in enumerate(finished_sizes)]
        live = [f"L{index}:{n}:".ljust(size + 1, "l")[:39] for n, size in enumerate(live_sizes)]
        region.update([Text(row) for row in finished], [Text(row) for row in live])
        printed += finished
        stream.feed(out.getvalue())
        out.seek(0), out.truncate()
        assert read_all(screen) == printed + live
    region.close([Text("the end")])
    stream.feed(out.getvalue())
    assert read_all(screen) == [*printed, "the end"]
    assert not screen.cursor.hidden and screen.cursor.x == 0


def test_an_unchanged_picture_is_not_sent_again() -> None:
    region, _, out, _ = build(40, 9)
    region.update([], [Text("same")])
    n_sent = len(out.getvalue())
    region.update([], [Text("same")])
    assert len(out.getvalue()) == n_sent


def test_a_narrower_window_leaves_no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal wraps the live rows when it becomes narrower; all of their rows are taken away."""
    region, _, out, _ = build(40, 9)
    region.update([], [Text("x" * 39), Text("y" * 10)])
    monkeypatch.setattr("edgeawq.tui.live_region._count_columns", lambda stream: 20)
    out.seek(0), out.truncate()
    region.update([], [Text("short")])
    assert "\x1b[2A" in out.getvalue()  # 2 + 1 rows on the screen: two up
    assert "\x1b[J" in out.getvalue()


def test_no_colour_without_colours() -> None:
    out = io.StringIO()
    region = LiveRegion(out, Console(file=io.StringIO(), force_terminal=True, no_color=True))
    region.update([Text("bold red", "bold red")], [])
    assert "\x1b[1m" in out.getvalue() and "31" not in out.getvalue()


def test_crop_counts_cells() -> None:
    assert crop_row(Text("日本語"), 5).plain == "日本…"
    assert crop_row(Text("abc"), 3).plain == "abc"
