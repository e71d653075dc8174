"""Keys at the prompt, without a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from edgeawq.tui.prompt import ChatPrompt, CommandCompleter

ALT_ENTER, CTRL_J, CTRL_C, CTRL_D, UP = "\x1b\r", "\n", "\x03", "\x04", "\x1b[A"


@pytest.fixture
def pipe() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe:
        yield pipe


def ask(pipe: PipeInput, keys: str, history: InMemoryHistory | None = None) -> str:
    prompt = ChatPrompt(history or InMemoryHistory(), lambda: "status", input_=pipe, output=DummyOutput())
    pipe.send_text(keys)
    return prompt.ask()


@pytest.mark.parametrize(
    "keys, text",
    [
        ("hello\r", "hello"),
        (f"one{ALT_ENTER}two\r", "one\ntwo"),
        (f"one{CTRL_J}two\r", "one\ntwo"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("one\\\rtwo\\\rthree\r", "one\ntwo\nthree"),
        ("back\\slash\r", "back\\slash"),
        ("\r  \r hi\r", "   hi"),
        ("\x1b[200~pasted\rtwo\r\nthree\x1b[201~\r", "pasted\ntwo\nthree"),
        (f"gone{CTRL_C}kept\r", "kept"),
        (f"{CTRL_C}a\r", "a"),
        ("Grüße 🙂\r", "Grüße 🙂"),
    ],
)
def test_keys_make_a_message(pipe: PipeInput, keys: str, text: str) -> None:
    assert ask(pipe, keys) == text


@pytest.mark.parametrize("keys", [CTRL_D, CTRL_C + CTRL_C, f"text{CTRL_C}{CTRL_C}{CTRL_C}"])
def test_keys_that_quit(pipe: PipeInput, keys: str) -> None:
    with pytest.raises(EOFError):
        ask(pipe, keys)


def test_typing_forgets_the_first_ctrl_c(pipe: PipeInput) -> None:
    assert ask(pipe, f"{CTRL_C}x\x7f{CTRL_C}y\r") == "y"


def complete(text: str) -> list[str]:
    return [completion.text for completion in CommandCompleter().get_completions(Document(text), CompleteEvent())]


def test_completion_of_commands() -> None:
    assert complete("/s") == ["/system ", "/save ", "/speculate ", "/stats"]
    assert complete("/q") == ["/quit"]
    assert complete("s") == [] and complete("/s\n") == [] and complete("/system x") == []


def test_completion_of_files(tmp_path: Path) -> None:
    (tmp_path / "chat one.json").write_text("")
    assert complete(f"/load {tmp_path}/ch") == ["at one.json"]
