"""The host's audit log: one line of JSON for every push, rollback, clearing up and change of keys.

It lies in edgeawq/audit.jsonl in $XDG_STATE_HOME or ~/.local/state. The device keeps a log of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgeawq.errors import DeployError, EdgeawqError

LOG_NAME = "audit.jsonl"
MAX_LOG_BYTES = 4 << 20
MAX_LINE_BYTES = 64 << 10
MAX_TEXT = 500  # characters of one value


def find_audit_log() -> Path:
    """Return where the log lies, or would lie."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "edgeawq" / LOG_NAME


@contextlib.contextmanager
def record_operation(
    op: str, device: str = "", *, on_note: Callable[[str], None] = lambda text: None, **details: Any
) -> Iterator[dict[str, Any]]:
    """Write what is done inside into the log when it is over, with its outcome: ok, failed or interrupted.

    Yields a dict whose entries ("release", …) get into the line. When the log cannot be written, `on_note` is told
    so, and nothing else happens: a full disk on the host is no reason to leave a device half-way.
    """
    facts: dict[str, Any] = dict(details)
    outcome: dict[str, Any] = {"outcome": "ok"}
    started = time.monotonic()
    try:
        yield facts
    except Exception as error:
        what = error.what if isinstance(error, EdgeawqError) else str(error)
        outcome = {"outcome": "failed", "error": type(error).__name__, "what": what}
        raise
    except BaseException:
        outcome = {"outcome": "interrupted"}
        raise
    finally:
        entry = {
            "time": round(time.time(), 3),
            "user": name_user(),
            "op": op,
            "device": device,
            **facts,
            "seconds": round(time.monotonic() - started, 3),
            **outcome,
        }
        if note := append_entry(entry):
            on_note(note)


def append_entry(entry: dict[str, Any], path: Path | None = None) -> str | None:
    """Append one line and make it durable; return None, or why that was not possible."""
    path = path or find_audit_log()
    line = json.dumps({name: _shorten(value) for name, value in entry.items()}, default=str).encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        return f"the audit log {path} has no line for this: it would be longer than {MAX_LINE_BYTES} bytes"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path):
            _rotate(path)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    line = b"\n" + line  # a crash has halved the line before; this one stays readable
                if os.write(descriptor, line) != len(line):
                    return f"the audit log {path} could not be written: the disk is full"
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        return f"the audit log {path} could not be written: {error.strerror or error}"
    return None


def read_entries(count: int, path: Path | None = None) -> list[dict[str, Any]]:
    """Return the last `count` entries, the oldest first. Lines that are damaged are left out."""
    path = path or find_audit_log()
    lines: list[bytes] = []
    for file in (path.with_name(f"{path.name}.1"), path):
        try:
            with file.open("rb") as stream:
                lines += stream.read(2 * MAX_LOG_BYTES).splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DeployError(f"{file} cannot be read: {error.strerror}", remedy="check its owner and mode") from error
    entries: list[dict[str, Any]] = []
    for line in reversed(lines):
        if len(entries) >= count:
            break
        with contextlib.suppress(ValueError, RecursionError):  # a line that a crash has halved
            entry = json.loads(line)
            if isinstance(entry, dict):
                entries.append(entry)
    return entries[::-1]


def name_user() -> str:
    """Return who does this: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user id without a name, as in a container
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from rotating the log between our look at its size and our line."""
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _rotate(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size >= MAX_LOG_BYTES:
            os.replace(path, path.with_name(f"{path.name}.1"))


def _shorten(value: Any) -> Any:
    return f"{value[:MAX_TEXT]}…" if isinstance(value, str) and len(value) > MAX_TEXT else value
