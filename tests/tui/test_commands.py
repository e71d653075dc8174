"""Slash commands, and what is no slash command."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeawq.runtime.sampler import SamplerSettings, make_sampler
from edgeawq.runtime.session import ChatSession
from edgeawq.tui.commands import list_commands, parse_command, run_command, unescape_message
from edgeawq.tui.status import describe_progress, describe_status, read_resident_bytes
from tests.runtime.fake_engine import build_fake_engine


@pytest.fixture
def session() -> ChatSession:
    return ChatSession(build_fake_engine(lambda question: f"You said: {question}"))


def ask(session: ChatSession, text: str) -> None:
    list(session.reply(text, make_sampler(SamplerSettings())))


@pytest.mark.parametrize(
    "text, parsed",
    [
        ("/help", ("help", "")),
        ("  /Save  my file.json ", ("save", "my file.json")),
        ("/system Be\nbrief", ("system", "Be\nbrief")),
        ("/", ("", "")),
        ("/?", ("?", "")),
        ("hello", None),
        ("/usr/bin/python is what?", None),
        ("//help", None),
        ("/help\nmore text", None),
        ("what is /help", None),
    ],
)
def test_parsing(text: str, parsed: tuple[str, str] | None) -> None:
    assert parse_command(text) == parsed


def test_a_doubled_slash_is_a_message() -> None:
    assert unescape_message("//help") == "/help"
    assert unescape_message("a//b") == "a//b"


def test_help_lists_every_command(session: ChatSession) -> None:
    text = run_command(session, "help", "").text
    assert all(f"/{name}" in text for name in list_commands())


def test_an_unknown_command_gives_a_hint(session: ChatSession) -> None:
    outcome = run_command(session, "rest", "")
    assert outcome.is_error and "Did you mean /reset?" in outcome.text and "/help" in outcome.text
    assert "Did you mean" not in run_command(session, "xyzzy", "").text


def test_arguments_where_none_belong(session: ChatSession) -> None:
    assert run_command(session, "reset", "now").is_error


@pytest.mark.parametrize("name", ["quit", "exit", "q"])
def test_quit(session: ChatSession, name: str) -> None:
    assert run_command(session, name, "").quits


def test_reset_and_system(session: ChatSession) -> None:
    ask(session, "hi")
    assert "no system prompt" in run_command(session, "system", "").text
    run_command(session, "system", "Be brief.")
    assert session.system == "Be brief."
    assert "Be brief." in run_command(session, "system", "").text
    run_command(session, "reset", "")
    assert session.messages == () and session.system == "Be brief."
    run_command(session, "system", "-")
    assert session.system is None


def test_save_and_load(session: ChatSession, tmp_path: Path) -> None:
    path = tmp_path / "my chat.json"
    assert run_command(session, "save", str(path)).is_error  # nothing to save
    ask(session, "hi")
    assert not run_command(session, "save", str(path)).is_error
    run_command(session, "reset", "")
    assert "2 messages" in run_command(session, "load", str(path)).text
    assert len(session.messages) == 2
    path.write_text(path.read_text().replace("tiny-fake", "another"))
    assert "another model, another" in run_command(session, "load", str(path)).text


@pytest.mark.parametrize("name", ["save", "load"])
def test_file_troubles_are_lines_not_traces(session: ChatSession, name: str, tmp_path: Path) -> None:
    ask(session, "hi")
    assert "file name" in run_command(session, name, "").text
    outcome = run_command(session, name, str(tmp_path / "no" / "where.json"))
    assert outcome.is_error and "→" in outcome.text


def test_stats_grow_with_the_first_answer(session: ChatSession) -> None:
    before = run_command(session, "stats", "").text
    assert "tiny-fake" in before and "decode" not in before
    ask(session, "hi there")
    after = run_command(session, "stats", "").text
    assert "decode" in after and f"{session.context_used} of 512 tokens" in after


@pytest.mark.parametrize("n_columns", [5, 20, 39, 79, 200])
def test_the_status_line_fits(session: ChatSession, n_columns: int) -> None:
    ask(session, "hi there")
    line = describe_status(session, n_columns)
    assert len(line) <= n_columns
    if n_columns >= 79:
        for part in ("tok/s", f"context {session.context_used}/512", "97 MB", "tiny-fake", "pi4"):
            assert part in line


def test_figures_of_the_process() -> None:
    assert read_resident_bytes() > 1 << 20
    assert describe_progress(128, 1000) == "reading 128/1000 tokens"


def test_speculation_is_switched_and_its_acceptance_shown(session: ChatSession) -> None:
    assert run_command(session, "speculate", "").text == "Speculation is off."
    ask(session, "one two three one two three one two three")
    assert "speculation     off" in run_command(session, "stats", "").text
    assert run_command(session, "speculate", "maybe").is_error
    assert run_command(session, "speculate", "on").text == "Speculation is on."
    ask(session, "one two three one two three one two three")
    stats = session.last_stats
    assert stats is not None and stats.accepted_tokens > 0
    shown = f"{stats.accepted_tokens} of {stats.drafted_tokens} drafted tokens accepted"
    assert shown in run_command(session, "stats", "").text
    run_command(session, "speculate", "off")
    ask(session, "one two three one two three one two three")
    assert session.last_stats is not None and session.last_stats.drafted_tokens == 0


def test_a_session_keeps_its_cache(session: ChatSession, tmp_path: Path) -> None:
    ask(session, "hi")
    used = session.context_used
    path = tmp_path / "talk"
    assert f"KV cache of {used} tokens" in run_command(session, "save", str(path)).text
    other = ChatSession(build_fake_engine(lambda question: f"You said: {question}"))
    assert f"Loaded 2 messages and {used} tokens of KV cache" in run_command(other, "load", str(path)).text
    assert other.context_used == used
    changed = ChatSession(build_fake_engine(lambda question: "x", context_length=8))
    assert "read again" in run_command(changed, "load", str(path)).text


def test_what_a_full_context_does_is_shown() -> None:
    session = ChatSession(build_fake_engine(lambda question: question, context_length=100), on_full="shift")
    for index in range(12):
        ask(session, f"question {index}")
    text = run_command(session, "stats", "").text
    assert f"when full       shift; {session.n_dropped} messages dropped" in text and session.n_dropped > 0
