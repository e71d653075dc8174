"""The folder on the device that holds everything of edgeawq, its state file and its log."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from typing import Any

from .files import is_count, read_bytes, read_json, remove, write_file
from .limits import HASH, MAX_HISTORY, MAX_LOG_BYTES, MAX_LOG_LINES, MAX_RELEASE_BYTES, RELEASE_ID
from .lock import Lock
from .refusal import Refusal

# Of all stored content. One time for all: Python's byte code cache compares it, and it must not change with the push.
STORED_TIME = 1_600_000_000


class Home:
    """Paths below `root`, what is known about releases, and the log."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.lock = Lock(root)
        self.owner = ""

    def path(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)

    def object_path(self, name: str) -> str:
        """Where content called `name` lies."""
        return self.path("store", name[:2], name)

    def has_object(self, name: str, size: int) -> bool:
        """True for a regular file of the right size that nobody has written to since its hash was checked."""
        try:
            found = os.lstat(self.object_path(name))
        except FileNotFoundError:
            return False
        untouched = int(found.st_mtime) == STORED_TIME
        return (found.st_mode & 0o170000) == 0o100000 and found.st_size == size and untouched

    def make_folders(self) -> None:
        os.makedirs(self.root, mode=0o755, exist_ok=True)
        for name in ("store", "partial", "releases", "bin", "starts"):
            path = self.path(name)
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
            if os.path.islink(path) or not os.path.isdir(path):
                raise Refusal("layout", f"{path} is not a folder", remedy="move it away")

    def remove_leftovers(self) -> None:
        """Remove what an operation that was cut off has left: unfinished releases, half-removed releases."""
        for name in os.listdir(self.path("releases")):
            if not RELEASE_ID.fullmatch(name):
                shutil.rmtree(self.path("releases", name))
        for name in os.listdir(self.path("partial")):
            path = self.path("partial", name)
            if not HASH.fullmatch(name) or os.path.islink(path) or not os.path.isfile(path):
                remove(path)

    # ---- state.json

    def state(self) -> dict[str, Any]:
        """Return state.json: what is known about releases. The symlinks, not this file, say what is current."""
        state = read_json(self.path("state.json"), MAX_RELEASE_BYTES)
        releases, history = state.get("releases"), state.get("history")
        known = {
            identity: {**facts, "sequence": facts["sequence"] if is_count(facts.get("sequence"), 1 << 60) else 0}
            for identity, facts in (releases.items() if isinstance(releases, dict) else ())
            if isinstance(facts, dict)
        }
        events = [event for event in history if isinstance(event, dict)] if isinstance(history, list) else []
        return {
            "format": 1,
            "sequence": state["sequence"] if is_count(state.get("sequence"), 1 << 60) else 0,
            "releases": known,
            "history": events,
        }

    def write_state(self, state: dict[str, Any]) -> None:
        write_file(self.path("state.json"), json.dumps(state, indent=1).encode())

    def remember(self, identity: str, facts: dict[str, Any], event: dict[str, Any] | None = None) -> None:
        """Note `facts` about a release; an `event` goes into the history and makes it the newest."""
        with self.lock.guard():
            state = self.state()
            entry = state["releases"].setdefault(identity, {})
            entry.update(facts, time=time.time())
            if facts.get("health") == "good":
                entry.pop("reason", None)
            if event or not entry.get("sequence"):
                state["sequence"] += 1
                entry["sequence"] = state["sequence"]
            if event:
                state["history"] = [*state["history"], {**event, "time": time.time(), "by": self.owner}][-MAX_HISTORY:]
            self.write_state(state)

    def forget(self, identities: list[str]) -> None:
        """Drop what is known about releases that were removed."""
        with self.lock.guard():
            state = self.state()
            for identity in identities:
                state["releases"].pop(identity, None)
            self.write_state(state)

    # ---- the log

    def note(self, event: str, **details: Any) -> None:
        """Append a line to the log."""
        path = self.path("log")
        line = json.dumps({"time": time.time(), "by": self.owner, "token": self.lock.token, "event": event, **details})
        with contextlib.suppress(OSError):
            if os.path.getsize(path) > MAX_LOG_BYTES:
                os.replace(path, f"{path}.1")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)

    def read_log(self, count: int) -> list[dict[str, Any]]:
        """Return the last `count` lines of the log, the oldest first."""
        lines: list[bytes] = []
        for path in (self.path("log.1"), self.path("log")):
            lines += (read_bytes(path, 2 * MAX_LOG_BYTES) or b"").splitlines()
        found = []
        for line in lines[-min(count, MAX_LOG_LINES) :]:
            with contextlib.suppress(ValueError, RecursionError):  # a line that a power cut has halved
                entry = json.loads(line)
                if isinstance(entry, dict):
                    found.append(entry)
        return found
