"""However the answer arrives, the same rows are printed; nothing twice, nothing lost."""

from __future__ import annotations

import io

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from edgeawq.tui.markdown_stream import MarkdownStream
from tests.tui.fake_chat import TOUR

PIECES = [
    "word ", "longerword ", "**bold** ", "*it* ", "`code` ", "[a](http://b.c) ", "\n", "\n\n", "- item ", "1. item ",
    "# Head", "```python\n", "```\n", "x = 'y'  # long comment that goes on", "| a | b |\n", "|---|---|\n", "> quote ",
    "日本語テキスト", "🙂", "Grüße ", "a" * 50, "\t", "**open ", "`open ", "---\n",
]  # fmt: skip


def print_rows(chunks: list[str], width: int, max_live_rows: int = 0) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="256", width=width)
    stream = MarkdownStream(console, width)
    rows = []
    for chunk in chunks:
        stream.push(chunk)
        rows += stream.take_finished(max_live_rows=max_live_rows)
        assert all(row.cell_len <= width for row in stream.live_rows())
    stream.end()
    rows += stream.take_finished()
    assert stream.live_rows() == []
    assert all(row.cell_len <= width for row in rows)
    return [row.plain for row in rows]


@settings(deadline=None, max_examples=40)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=20),
    width=st.integers(12, 90),
    size=st.integers(1, 20),
)
@example(pieces=[TOUR], width=39, size=1)
def test_rows_do_not_depend_on_how_the_text_arrives(pieces: list[str], width: int, size: int) -> None:
    text = "".join(pieces)
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    assert print_rows(chunks, width) == print_rows([text], width)


@settings(deadline=None, max_examples=15)
@given(
    words=st.lists(
        st.sampled_from(["word", "longer-word", "**bold**", "*it*", "`code`", "**two words**", "日本語", "ü"]),
        min_size=30,
        max_size=80,
    ),
    width=st.integers(12, 60),
    max_live_rows=st.integers(1, 4),
    prefix=st.sampled_from(["", "- ", "12. ", "> "]),
)
def test_a_paragraph_longer_than_the_screen_gives_its_first_rows_away(
    words: list[str], width: int, max_live_rows: int, prefix: str
) -> None:
    text = prefix + " ".join(words)
    whole = print_rows([text], width)
    chunks = [text[start : start + 3] for start in range(0, len(text), 3)]
    assert print_rows(chunks, width, max_live_rows) == whole
    stream = MarkdownStream(Console(file=io.StringIO(), width=width), width)
    for chunk in chunks:
        stream.push(chunk)
        stream.take_finished(max_live_rows=max_live_rows)
        assert len(stream.live_rows()) <= max_live_rows


def test_a_mark_that_never_closes_loses_no_word() -> None:
    words = [f"word{index}" for index in range(100)]
    text = "**" + " ".join(words)
    rows = print_rows(list(text), 30, max_live_rows=2)
    assert " ".join(rows).replace("*", "").split() == words


def test_code_is_shown_as_it_is() -> None:
    rows = print_rows(["```python\ndef f():\n\n    return '**x**'  # | a |\n```\nafter"], 60)
    assert rows == ["  def f():", "  ", "      return '**x**'  # | a |", "after"]


def test_a_long_code_line_is_folded_and_complete() -> None:
    line = "".join(chr(ord("a") + index % 26) for index in range(100))
    rows = print_rows([f"```\n{line}\n```\n"], 30)
    assert "".join(row.removeprefix("  ") for row in rows) == line


def test_a_code_block_inside_a_list_ends() -> None:
    rows = print_rows(["1. do\n   ```bash\n   ls -l\n   ```\n2. done"], 40)
    assert rows == [" 1. do", "  ls -l", " 2. done"]


def test_a_code_block_that_is_not_closed_is_printed() -> None:
    assert print_rows(["```\nabc"], 40) == ["  abc"]


def test_tables() -> None:
    rows = print_rows(["| a | b |\n|---|:-:|\n| **1** | x\\|y |\n| only |\n\nend"], 40)
    assert [cell.strip() for cell in rows[0].split("│")] == ["a", "b"]
    assert [cell.strip() for cell in rows[2].split("│")] == ["1", "x|y"]
    assert [cell.strip() for cell in rows[3].split("│")] == ["only", ""]
    assert rows[-1] == "end"


def test_bars_without_a_table_stay_text() -> None:
    assert print_rows(["| not a table\nnext"], 40) == ["| not a table", "next"]


def test_empty_lines_are_never_doubled() -> None:
    assert print_rows(["\n\na\n\n\n\nb\n\n\n"], 40) == ["a", "", "b", ""]


@pytest.mark.parametrize("language", ["python", "no-such-language", "", "c++"])
def test_highlighting_keeps_the_text(language: str) -> None:
    code = 'x = """start\nstill a string\n"""\ny = 1'
    rows = print_rows([f"```{language}\n{code}\n```"], 60)
    assert "\n".join(row.removeprefix("  ") for row in rows) == code


def test_wide_characters_fit() -> None:
    rows = print_rows(["日本語" * 30], 21)
    assert all(cell_len(row) <= 21 for row in rows)
    assert "".join(rows) == "日本語" * 30
