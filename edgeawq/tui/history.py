"""Where the chat remembers what was typed."""

from __future__ import annotations

import os
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

MAX_BYTES = 1 << 20


def find_history_file() -> Path:
    """The history file: $XDG_STATE_HOME/edgeawq/history, by default below ~/.local/state."""
    configured = os.environ.get("XDG_STATE_HOME", "")
    base = Path(configured) if configured.startswith("/") else Path.home() / ".local" / "state"
    return base / "edgeawq" / "history"


def open_history(path: Path) -> History:
    """A history kept in `path`, which only its owner can read; kept in memory only where that cannot be written."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        _shorten(path)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def _shorten(path: Path) -> None:
    """Keep the newer half of a file that has become too large, whole entries only."""
    if path.stat().st_size <= MAX_BYTES:
        return
    data = path.read_bytes()[-MAX_BYTES // 2 :]
    start = data.find(b"\n\n# ")  # an entry is an empty line, a comment with the time, and its lines with "+"
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data[start + 1 :] if start >= 0 else b"")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
