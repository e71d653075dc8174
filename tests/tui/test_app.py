"""The chat in an emulated terminal, as a person meets it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from edgeawq.tui.markdown_stream import MarkdownStream
from tests.tui.fake_chat import TOUR
from tests.tui.terminal import ALT_ENTER, CTRL_C, CTRL_D, ENTER, Terminal

Start = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    opened: list[Terminal] = []

    def build(*arguments: str, **options: object) -> Terminal:
        terminal = Terminal("tests.tui.fake_chat", *arguments, state=tmp_path, **options)  # type: ignore[arg-type]
        opened.append(terminal)
        terminal.wait_for("›")
        return terminal

    yield build
    for terminal in opened:
        terminal.close()


def is_asking(shown: str) -> bool:
    """Whether an empty prompt is on the screen, below an answer."""
    rows = shown.splitlines()
    return "›" in rows and "tok/s" in "".join(rows[rows.index("›") :])


def render(text: str, n_columns: int) -> list[str]:
    stream = MarkdownStream(Console(file=io.StringIO(), width=n_columns), n_columns - 1)
    stream.push(text)
    stream.end()
    return [row.plain.rstrip() for row in stream.take_finished()]


def cut_answer(rows: list[str], question: str) -> list[str]:
    """The rows between the question and the next prompt, without empty ones at the end."""
    start = rows.index(f"› {question}") + 1
    end = next(index for index in range(start, len(rows)) if rows[index].startswith("›"))
    answer = rows[start:end]
    while answer and not answer[-1]:
        answer.pop()
    return answer


@pytest.mark.parametrize("n_columns, n_rows", [(80, 24), (40, 10), (132, 50)])
@pytest.mark.parametrize("question", ["tour", "count 60", "words 200"])
def test_an_answer_is_in_the_scrollback_once_and_whole(
    start: Start, n_columns: int, n_rows: int, question: str
) -> None:
    """The heart of it: longer than the screen or not, redrawn many times, every row stays exactly once."""
    terminal = start("0.001", n_columns=n_columns, n_rows=n_rows)
    terminal.send(question + ENTER)
    terminal.wait_for(is_asking, 60)
    text = {
        "tour": TOUR,
        "count 60": "\n".join(f"line {index}" for index in range(1, 61)),
        "words 200": " ".join(f"word{index}" for index in range(1, 201)),
    }[question]
    expected = render(text, n_columns)
    while expected and not expected[-1]:
        expected.pop()
    assert cut_answer(terminal.read_everything(), question) == expected
    terminal.send(CTRL_D)
    assert terminal.wait_for_exit() == 0


@pytest.mark.parametrize("n_columns, n_rows", [("80", "24"), ("20", "5")])
def test_the_terminal_knows_its_size_better_than_the_environment(start: Start, n_columns: str, n_rows: str) -> None:
    """Whoever starts the chat may hand down COLUMNS and LINES of another window."""
    terminal = start("0.001", n_columns=40, n_rows=10, COLUMNS=n_columns, LINES=n_rows)
    terminal.send("words 100" + ENTER)
    terminal.wait_for(is_asking, 60)
    expected = render(" ".join(f"word{index}" for index in range(1, 101)), 40)
    assert cut_answer(terminal.read_everything(), "words 100") == expected


def test_a_serial_line_that_does_not_know_its_size(start: Start) -> None:
    """Its size is 0 by 0, which counts as 80 columns: the rows above the live ones stay."""
    terminal = start("0.001")
    terminal._child.setwinsize(0, 0)
    terminal.send("count 60" + ENTER)
    terminal.wait_for(is_asking, 60)
    assert cut_answer(terminal.read_everything(), "count 60") == [f"line {index}" for index in range(1, 61)]


def test_ctrl_c_stops_the_answer_and_not_the_program(start: Start) -> None:
    terminal = start("0.02")
    terminal.send("words 2000" + ENTER)
    terminal.wait_for("word9")
    terminal.send(CTRL_C)
    terminal.wait_for("(stopped)")
    terminal.send("still there" + ENTER)
    terminal.wait_for("You said: still there")
    terminal.send(CTRL_C)
    terminal.wait_for("Ctrl-C again, or Ctrl-D, quits")
    terminal.send(CTRL_C)
    assert terminal.wait_for_exit() == 0


def test_the_first_time_has_a_hint_and_later_ones_have_a_history(start: Start) -> None:
    first = start()
    assert "Enter sends" in first.wait_for("/help shows more")
    first.send("remember me" + ENTER)
    first.wait_for("You said: remember me")
    first.send("/quit" + ENTER)
    assert first.wait_for_exit() == 0
    second = start()
    assert "Enter sends" not in second.wait_for("context 0/")
    second.send("\x1b[A\x1b[A")
    second.wait_for("› remember me")


def test_several_lines_and_a_paste(start: Start) -> None:
    terminal = start()
    terminal.send(f"one{ALT_ENTER}two\\{ENTER}three")
    terminal.wait_for("  three")
    terminal.send(ENTER)
    terminal.wait_for("You said: one\ntwo\nthree")
    terminal.send("\x1b[200~alpha\rbeta\x1b[201~" + ENTER)
    terminal.wait_for("You said: alpha\nbeta")


def test_commands_and_completion(start: Start) -> None:
    terminal = start()
    terminal.send("/he")
    terminal.wait_for("show this list")
    terminal.send("\t" + ENTER + ENTER)
    terminal.wait_for("/save FILE")
    terminal.send("/rest" + ENTER)
    terminal.wait_for("Did you mean /reset?")
    terminal.send("hello" + ENTER)
    terminal.wait_for("You said: hello")
    terminal.send("/reset" + ENTER)
    terminal.wait_for("starts afresh")


def test_keys_typed_during_an_answer_wait_for_the_prompt(start: Start) -> None:
    terminal = start("0.01")
    terminal.send("words 60" + ENTER)
    terminal.wait_for("word5 ")
    terminal.send("typed ahead" + ENTER)
    terminal.wait_for("You said: typed ahead")
    answer = cut_answer(terminal.read_everything(), "words 60")
    assert " ".join(answer) == " ".join(f"word{index}" for index in range(1, 61))


def test_a_full_context_says_what_to_do(start: Start) -> None:
    terminal = start("0", "120")
    terminal.send("words 400" + ENTER)
    terminal.wait_for("The context is full (120 of 120 tokens). /reset starts afresh.")
    terminal.send("and now?" + ENTER)
    terminal.wait_for("→ /reset starts afresh")
    terminal.send("/reset" + ENTER)
    terminal.send("hello" + ENTER)
    terminal.wait_for("You said: hello")


def test_the_model_cannot_control_the_terminal(start: Start) -> None:
    terminal = start()
    terminal.send("evil" + ENTER)
    terminal.wait_for("a]0;titleb[2Jc")
    assert terminal.screen.title == ""


def test_no_color(start: Start) -> None:
    terminal = start(NO_COLOR="1")
    terminal.send("tour" + ENTER)
    terminal.wait_for("Grüße aus Köln")
    terminal.send(CTRL_D)
    terminal.wait_for_exit()
    colours = [
        code
        for sequence in re.findall(rb"\x1b\[([0-9;]*)m", terminal.raw)
        for code in sequence.split(b";")
        if code.isdigit() and (30 <= int(code) <= 49 and int(code) not in (39, 49) or 90 <= int(code) <= 107)
    ]
    assert colours == []


def test_a_terminal_that_cannot_move_its_cursor(start: Start) -> None:
    terminal = Terminal("tests.tui.fake_chat", state=Path("/nonexistent"), TERM="dumb")
    try:
        terminal.wait_for(">")
        terminal.send("tour\n")
        terminal.wait_for("Grüße aus Köln")
        terminal.send("/quit\n")
        assert terminal.wait_for_exit() == 0
        assert b"\x1b" not in terminal.raw
    finally:
        terminal.close()


def test_a_window_that_becomes_narrower_during_an_answer(start: Start) -> None:
    terminal = start("0.01")
    terminal.send("count 40" + ENTER)
    terminal.wait_for("line 10")
    terminal.resize(60, 24)
    terminal.wait_for(lambda shown: "line 40" in shown and is_asking(shown))
    answer = [row for row in terminal.read_everything() if row.startswith("line ")]
    assert answer[-3:] == ["line 38", "line 39", "line 40"]
    assert len(answer) == len(set(answer))
