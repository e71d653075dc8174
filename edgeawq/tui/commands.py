"""The slash commands of the chat. Each returns what to show; printing is the front end's business."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeawq.errors import EdgeawqError
from edgeawq.runtime.session import ChatSession, LoadedChat
from edgeawq.tui.status import describe_stats

_COMMAND = re.compile(r"/([A-Za-z?]*)(?:\s+(.*))?$", re.DOTALL)


@dataclass(frozen=True)
class Outcome:
    """What a command says; `quits` ends the chat."""

    text: str = ""
    is_error: bool = False
    quits: bool = False


@dataclass(frozen=True)
class Command:
    """One slash command as /help lists it."""

    name: str
    argument: str  # "" where it takes none
    summary: str
    run: Callable[[ChatSession, str], Outcome]


def parse_command(text: str) -> tuple[str, str] | None:
    """(name, argument) of a command line; None for a message. "//" at the beginning sends a message with one slash."""
    if "\n" in text.strip() and not text.startswith("/system"):
        return None
    match = _COMMAND.match(text.strip())
    return (match.group(1).lower(), (match.group(2) or "").strip()) if match else None


def unescape_message(text: str) -> str:
    """The message that was typed, without the doubled slash of "//…"."""
    return text[1:] if text.startswith("//") else text


def run_command(session: ChatSession, name: str, argument: str) -> Outcome:
    """Do what the command says; an unknown one gives a hint."""
    commands = list_commands()
    command = commands.get({"exit": "quit", "q": "quit", "?": "help", "h": "help"}.get(name, name))
    if command is None:
        near = difflib.get_close_matches(name, commands, n=1, cutoff=0.5)
        hint = f"Did you mean /{near[0]}? " if near else ""
        return Outcome(f"There is no command /{name}. {hint}/help lists all of them.", is_error=True)
    if argument and not command.argument:
        return Outcome(f"/{command.name} takes no argument.", is_error=True)
    try:
        return command.run(session, argument)
    except EdgeawqError as error:
        return Outcome(f"{error.what}\n→ {error.remedy}" if error.remedy else error.what, is_error=True)


def list_commands() -> Mapping[str, Command]:
    """Every command by its name, in the order in which /help shows them."""
    listed = (
        Command("help", "", "show this list", _show_help),
        Command("reset", "", "forget the conversation, keep the system prompt", _reset),
        Command("system", "TEXT", "set the system prompt; without TEXT show it, with - remove it", _set_system),
        Command("save", "FILE", "save the conversation; NAME.json takes the messages alone", _save),
        Command("load", "FILE", "go on with a saved conversation", _load),
        Command(
            "speculate", "on|off", "draft answers from repeated text; without an argument say if it is on", _speculate
        ),
        Command("stats", "", "speed, context and memory", _show_stats),
        Command("quit", "", "end the chat", lambda session, argument: Outcome(quits=True)),
    )
    return {command.name: command for command in listed}


def _show_help(session: ChatSession, argument: str) -> Outcome:
    rows = [f"/{command.name} {command.argument}".ljust(20) + command.summary for command in list_commands().values()]
    keys = (
        "Enter".ljust(20) + "send",
        "Alt-Enter".ljust(20) + "new line (or Ctrl-J, or \\ at the end of the line)",
        "Ctrl-C".ljust(20) + "stop the answer; twice at an empty prompt: quit",
        "Ctrl-D".ljust(20) + "quit",
        "Ctrl-R, ↑".ljust(20) + "earlier messages",
    )
    return Outcome("\n".join([*rows, "", *keys]))


def _reset(session: ChatSession, argument: str) -> Outcome:
    session.reset()
    return Outcome("The conversation starts afresh.")


def _set_system(session: ChatSession, argument: str) -> Outcome:
    if not argument:
        return Outcome(f"System prompt: {session.system}" if session.system else "There is no system prompt.")
    session.set_system(None if argument == "-" else argument)
    if argument == "-":
        return Outcome("The system prompt is removed.")
    return Outcome("The system prompt holds from the next answer on.")


def _save(session: ChatSession, argument: str) -> Outcome:
    if not argument:
        return Outcome("/save needs a file name, such as /save chat or /save chat.json", is_error=True)
    if not session.messages:
        return Outcome("There is nothing to save yet.", is_error=True)
    path = Path(argument)
    session.save(path)
    what = "" if path.suffix == ".json" else f" and the KV cache of {session.context_used} tokens"
    return Outcome(f"Saved {len(session.messages)} messages{what} to {argument}")


def _load(session: ChatSession, argument: str) -> Outcome:
    if not argument:
        return Outcome("/load needs a file name, such as /load chat or /load chat.json", is_error=True)
    return Outcome(describe_loaded(session, session.load(Path(argument)), argument))


def describe_loaded(session: ChatSession, loaded: LoadedChat, name: str) -> str:
    """What came back from a file, in lines."""
    what = f" and {loaded.n_cached} tokens of KV cache" if loaded.n_cached else ""
    lines = [f"Loaded {len(loaded.chat.messages)} messages{what} from {name}"]
    if loaded.chat.model != session.engine.model_name:
        lines.append(f"They were written with another model, {loaded.chat.model}.")
    if loaded.note:
        lines.append(f"Note: {loaded.note}.")
    return "\n".join(lines)


def _speculate(session: ChatSession, argument: str) -> Outcome:
    if argument not in ("", "on", "off"):
        return Outcome(f"/speculate takes on or off, not {argument}", is_error=True)
    if argument:
        session.speculates = argument == "on"
    return Outcome(f"Speculation is {'on' if session.speculates else 'off'}.")


def _show_stats(session: ChatSession, argument: str) -> Outcome:
    return Outcome("\n".join(f"{name:<16}{value}" for name, value in describe_stats(session)))
