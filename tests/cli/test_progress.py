from __future__ import annotations

import io

import pytest
from rich.console import Console

from edgeawq.cli.progress import LateBar, follow, make_token_bar


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_without_rows_writes_nothing(is_terminal: bool) -> None:
    stream = io.StringIO()
    with LateBar(console=Console(file=stream, force_terminal=is_terminal)):
        pass
    assert stream.getvalue() == ""


def test_rows_are_shown_to_the_end() -> None:
    stream = io.StringIO()
    with make_token_bar(Console(file=stream, force_terminal=True, width=80, no_color=True)) as bar:
        show = follow(bar, "a model", 512)
        show(1, 2)
        assert bar.live.is_started
        show(2, 2)
    assert "a model" in stream.getvalue() and "100%" in stream.getvalue()
