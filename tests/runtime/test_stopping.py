"""However the text is cut into pieces, the same text is shown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeawq.errors import UsageError
from edgeawq.runtime.stopping import StopStringFilter

short_texts = st.text(alphabet="abc", max_size=30)
stops = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4)


def run(pieces: list[str], stop_strings: list[str]) -> tuple[str, bool]:
    filter_ = StopStringFilter(stop_strings)
    shown = ""
    for piece in pieces:
        text, stopped = filter_.push(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + filter_.flush(), False


def find_first(text: str, stop_strings: list[str]) -> tuple[str, bool]:
    """The plain way: the stop string that is complete first ends the text where it begins."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stop_strings if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@settings(deadline=None)
@given(text=short_texts, stop_strings=stops, data=st.data())
def test_text_does_not_depend_on_the_pieces(text: str, stop_strings: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert run(pieces, stop_strings) == run(list(text), stop_strings) == find_first(text, stop_strings)


def test_only_a_possible_beginning_is_held_back() -> None:
    filter_ = StopStringFilter(["</end>"])
    assert filter_.push("hello <") == ("hello ", False)
    assert filter_.push("/e") == ("", False)
    assert filter_.push("x") == ("</ex", False)
    assert filter_.push("</end") == ("", False)
    assert filter_.push("> more") == ("", True)


@pytest.mark.parametrize("bad, message", [([""], "empty"), (["x" * 2000], "2000"), (["x"] * 100, "100")])
def test_bad_stop_strings_are_refused(bad: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StopStringFilter(bad)
