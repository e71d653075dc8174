"""One line of Markdown source → one styled text: the unit of streaming.

Chat models write a paragraph, a list item or a heading as one line of source. Rendered line by line, what is on the
screen never has to change again once its line is finished, however long the answer becomes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from markdown_it import MarkdownIt
from rich.style import Style
from rich.text import Text

_HEADING = re.compile(r" {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_BULLET = re.compile(r"(\s*)([-*+])\s+(.*)$")
_NUMBERED = re.compile(r"(\s*)(\d{1,9}[.)])\s+(.*)$")
_QUOTE = re.compile(r" {0,3}((?:>\s?)+)(.*)$")
_MARK = re.compile(r"\\.|\*{1,3}|__|~~|`+")
_RULE = re.compile(r" {0,3}([-*_])(?:\s*\1){2,}\s*$")

_STYLES = {
    "strong": Style(bold=True),
    "em": Style(italic=True),
    "s": Style(strike=True),
    "code": Style(color="cyan"),
    "link": Style(underline=True),
    "heading": Style(bold=True, color="blue"),
    "quote": Style(dim=True),
    "mark": Style(color="yellow"),
    "rule": Style(dim=True),
}


@dataclass(frozen=True)
class StyledLine:
    """Text that may wrap: `prefix` stands before its first row, `indent` before the others."""

    body: Text
    prefix: Text = field(default_factory=Text)
    indent: Text = field(default_factory=Text)
    is_rule: bool = False  # a horizontal line as wide as the screen


def style_line(source: str, *, is_finished: bool = True) -> StyledLine:
    """Style one line of Markdown that is not inside a code block or a table.

    While a line is not finished, marks that are still open count as closed at its end, so that the text does not jump
    when the closing mark comes, and the beginning of a link is held back.
    """
    source = source.rstrip()
    if is_finished and _RULE.match(source):
        return StyledLine(Text(), is_rule=True)
    quote = _QUOTE.match(source)
    if quote:
        inner = style_line(quote.group(2), is_finished=is_finished)
        bar = Text("▌ " * quote.group(1).count(">"), _STYLES["quote"])
        inner.body.stylize(_STYLES["quote"])
        return StyledLine(inner.body, bar + inner.prefix, bar + inner.indent)
    heading = _HEADING.match(source)
    if heading:
        body = style_inline(heading.group(2), is_finished=is_finished)
        body.stylize(_STYLES["heading"])
        return StyledLine(body)
    for pattern in (_BULLET, _NUMBERED):
        item = pattern.match(source)
        if item:
            margin = " " * (len(item.group(1).expandtabs(4)) + 1)
            mark = "•" if pattern is _BULLET else item.group(2)
            prefix = Text(margin) + Text(mark, _STYLES["mark"]) + Text(" ")
            return StyledLine(style_inline(item.group(3), is_finished=is_finished), prefix, Text(" " * len(prefix)))
    margin = " " * (len(source) - len(source.lstrip()))
    body = style_inline(source.strip(), is_finished=is_finished)
    # Indented text belongs to the list item above it; deep indentation would leave no room on a narrow screen.
    return StyledLine(body, Text(margin[:8]), Text(margin[:8]))


def style_inline(source: str, *, is_finished: bool = True) -> Text:
    """Bold, italic, code, strike-through and links of one line as styled text, without their marks."""
    if not is_finished:
        source = close_open_marks(source)
    text = Text()
    styles: list[Style] = []
    links: list[str] = []
    tokens = _build_parser().parseInline(source)[0].children or []
    for token in tokens:
        name = token.type.removesuffix("_open").removesuffix("_close")
        if token.type == "code_inline":
            text.append(token.content, _combine(*styles, _STYLES["code"]))
        elif token.type in ("softbreak", "hardbreak"):
            text.append("\n")
        elif token.type == "image":
            text.append(token.content or "image", _combine(*styles, _STYLES["em"]))
        elif token.nesting == 1:
            styles.append(_STYLES.get(name, Style()))
            if name == "link":
                links.append(str(token.attrs.get("href", "")))
        elif token.nesting == -1:
            styles.pop()
            if name == "link":
                _append_target(text, links.pop())
        else:
            text.append(token.content, _combine(*styles))
    return text


def close_open_marks(source: str) -> str:
    """Close `**`, `*`, `_`, `~~` and backticks that are open at the end, and drop the beginning of a link or a mark."""
    source = _drop_open_link(source)
    # Marks at the very end may be the first half of longer ones: they show when something follows them.
    bare = source.rstrip("*_~`")
    opened: list[str] = []
    position = 0
    while found := _MARK.search(bare, position):
        mark, position = found.group(), found.end()
        if mark[0] == "\\":
            continue
        if mark[0] == "`":
            # Nothing inside code is a mark: go on behind its end.
            end = bare.find(mark, position)
            if end < 0:
                opened.append(mark)
                break
            position = end + len(mark)
        elif mark in opened:
            del opened[opened.index(mark) :]
        elif position < len(bare) and not bare[position].isspace():
            opened.append(mark)
    return bare.rstrip() + "".join(reversed(opened)) if opened else bare


def _drop_open_link(source: str) -> str:
    start = source.rfind("[")
    if start < 0 or len(source) - start > 2000:
        return source
    rest = source[start:]
    label_end = rest.find("]")
    if label_end < 0:
        return source[:start] if len(rest) < 200 else source
    if rest[label_end + 1 : label_end + 2] == "(" and ")" not in rest[label_end:]:
        return source[:start]
    return source


def _combine(*styles: Style) -> Style:
    return Style.combine(styles) if styles else Style()


def _append_target(text: Text, target: str) -> None:
    """Write a link's address behind its text: a terminal over SSH may not show it any other way."""
    if target and target.removeprefix("mailto:") not in text.plain:
        text.append(f" ({target})", Style(dim=True))


@lru_cache(maxsize=1)
def _build_parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable("strikethrough")
