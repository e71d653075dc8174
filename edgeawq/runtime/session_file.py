"""A saved conversation: one JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgeawq.errors import UsageError
from edgeawq.runtime.chat_template import Message
from edgeawq.runtime.whole_file import describe_os_error, write_whole

FORMAT = "edgeawq-chat"
FORMAT_VERSION = 1
MAX_BYTES = 16 << 20
MAX_MESSAGES = 10_000


@dataclass(frozen=True)
class SavedChat:
    """What a saved conversation holds."""

    model: str
    system: str | None
    messages: tuple[Message, ...]  # user and assistant in turn, ends with an answer


def write_chat(path: Path, chat: SavedChat) -> None:
    """Write `chat` to `path`; the file appears whole or not at all, and only its owner can read it."""
    # Text typed at a terminal may hold bytes that are no Unicode; "replace" keeps the file valid UTF-8.
    data = (json.dumps(to_document(chat), ensure_ascii=False, indent=1) + "\n").encode("utf-8", errors="replace")
    write_whole(path.expanduser(), lambda file: _write(file, data))


def to_document(chat: SavedChat) -> dict[str, Any]:
    """The conversation as JSON values."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": chat.model,
        "system": chat.system,
        "messages": [{"role": message.role, "content": message.content} for message in chat.messages],
    }


def read_chat(path: Path) -> SavedChat:
    """Read and check a saved conversation; UsageError when the file is not one."""
    path = path.expanduser()
    try:
        if not path.is_file():
            raise UsageError(f"there is no file {path}", remedy="give a file that /save has written")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {describe_os_error(error)}", remedy="give another file name") from error
    if len(data) > MAX_BYTES:
        raise _refuse(path, f"is larger than the limit of {MAX_BYTES} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _refuse(path, f"is not JSON ({str(error)[:100]})") from error
    return from_document(path, document)


def from_document(path: Path, document: Any) -> SavedChat:
    """Check what `to_document` has made; UsageError that names `path` when it is something else."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _refuse(path, "is no saved conversation")
    if document.get("format_version") != FORMAT_VERSION:
        raise _refuse(path, f"has format version {document.get('format_version')!r}, known is {FORMAT_VERSION}")
    model, system = document.get("model"), document.get("system")
    if not isinstance(model, str) or not (system is None or isinstance(system, str)):
        raise _refuse(path, "has a model or a system prompt that is no text")
    return SavedChat(model, system, _read_messages(path, document.get("messages")))


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def _read_messages(path: Path, value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or len(value) > MAX_MESSAGES:
        raise _refuse(path, f"has no list of at most {MAX_MESSAGES} messages")
    messages: list[Message] = []
    for index, entry in enumerate(value):
        role = ("user", "assistant")[index % 2]
        if not isinstance(entry, dict) or entry.get("role") != role or not isinstance(entry.get("content"), str):
            raise _refuse(path, f"has a message {index + 1} that is no text from the {role}")
        messages.append(Message(role, entry["content"]))
    if len(messages) % 2:
        raise _refuse(path, "ends with a question that has no answer")
    return tuple(messages)


def _refuse(path: Path, what: str) -> UsageError:
    return UsageError(f"{path} {what}", remedy="give a file that /save has written")
