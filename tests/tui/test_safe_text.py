"""Nothing that a model writes controls the terminal."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeawq.tui.safe_text import strip_controls


@settings(deadline=None)
@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    cleaned = strip_controls(text)
    assert all(char in "\n\t" or (ord(char) >= 32 and not 127 <= ord(char) < 160) for char in cleaned)
    assert [char for char in text if char.isalnum()] == [char for char in cleaned if char.isalnum()]


def test_escape_sequences_fall_apart() -> None:
    assert strip_controls("a\x1b[2Jb\x9b1mc\x07\rd\u202ee") == "a[2Jb1mcde"
    assert strip_controls("tab\tline\nGrüße 🙂👍🏽") == "tab\tline\nGrüße 🙂👍🏽"
