"""One line of Markdown: what is shown, and how."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeawq.tui.markdown_lines import close_open_marks, style_inline, style_line


def styles_of(source: str) -> dict[str, str]:
    """piece of text → its style, for every styled piece of `source`."""
    text = style_inline(source)
    return {text.plain[span.start : span.end]: str(span.style) for span in text.spans}


def test_marks_become_styles() -> None:
    assert styles_of("a **bold** and *it* and `co*de` and ~~no~~") == {
        "bold": "bold",
        "it": "italic",
        "co*de": "cyan",
        "no": "strike",
    }


@pytest.mark.parametrize("source", ["5 * 3 * 2", "snake_case_name", "a < b > c", "<b>html</b>", "1) not", "\\*x\\*"])
def test_ordinary_text_is_left_alone(source: str) -> None:
    assert style_inline(source).plain == source.replace("\\", "")


def test_a_link_shows_its_address_once() -> None:
    assert style_inline("see [docs](https://x.y/z) now").plain == "see docs (https://x.y/z) now"
    assert style_inline("<https://x.y>").plain == "https://x.y"


@pytest.mark.parametrize(
    "source, shown",
    [
        ("## Title", "Title"),
        ("- item", " • item"),
        ("  * inner", "   • inner"),
        ("12. twelve", " 12. twelve"),
        ("> quoted", "▌ quoted"),
        ("> > - deep", "▌ ▌  • deep"),
        ("plain", "plain"),
        ("#hashtag", "#hashtag"),
        ("-5 degrees", "-5 degrees"),
    ],
)
def test_line_kinds(source: str, shown: str) -> None:
    line = style_line(source)
    assert line.prefix.plain + line.body.plain == shown
    assert line.indent.cell_len == line.prefix.cell_len


@pytest.mark.parametrize("source", ["---", "***", " _ _ _ "])
def test_rules(source: str) -> None:
    assert style_line(source).is_rule


@pytest.mark.parametrize(
    "source, shown",
    [
        ("a **bo", "a bo"),
        ("a **bo*", "a bo"),
        ("a `co", "a co"),
        ("a `x ** y", "a x ** y"),
        ("a **b *c", "a b c"),
        ("x [lin", "x "),
        ("x [link](http://y", "x "),
        ("5 * 3", "5 * 3"),
        ("**", ""),
        ("a \\*b", "a *b"),
    ],
)
def test_an_unfinished_line_shows_no_open_marks(source: str, shown: str) -> None:
    assert style_inline(source, is_finished=False).plain == shown


@settings(deadline=None)
@given(st.text(alphabet="ab *_`~[]()\\<>&#-|", max_size=60))
def test_any_text_can_be_styled(source: str) -> None:
    close_open_marks(source)
    for is_finished in (True, False):
        line = style_line(source, is_finished=is_finished)
        assert "\n" not in line.body.plain
