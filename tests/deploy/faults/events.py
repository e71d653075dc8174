"""A transport that counts every remote operation of a push and lets a test act at one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from edgeawq.deploy.local import LocalTransport
from edgeawq.deploy.receiver_program import read_join_program
from edgeawq.deploy.transport import RemoteProcess, quote_words

MOMENTS = ("before", "halfway", "after")


class WatchedProcess:
    """A process whose every use is an event; `kind` is "command", "receiver" or "channel"."""

    def __init__(self, process: Any, transport: EventTransport, kind: str) -> None:
        self.process = process
        self.transport = transport
        self.kind = kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self.process, name)

    @property
    def pid(self) -> int:
        """The process on the device: the shell that was started has become it."""
        return int(self.process._child.pid)

    def write(self, data: bytes | memoryview) -> None:
        """Send data; halfway: half of it."""
        self.transport.event(f"{self.kind} write", lambda: self.process.write(data), self, data)

    def read(self, size: int) -> bytes:
        """Receive data."""
        return bytes(self.transport.event(f"{self.kind} read", lambda: self.process.read(size), self))

    def close_input(self) -> None:
        """End the input."""
        self.transport.event(f"{self.kind} end", self.process.close_input, self)

    def wait(self) -> int:
        """Wait for the end."""
        return int(self.transport.event(f"{self.kind} wait", self.process.wait, self))


class EventTransport(LocalTransport):
    """This machine. `act` is called at event number `target`, at `moment`; target -1: events are only listed."""

    def __init__(self, target: int, moment: str, act: Callable[[EventTransport, Any], None]) -> None:
        self.target = target
        self.moment = moment
        self.act = act
        self.lock = threading.Lock()
        self.events: list[str] = []
        self.processes: list[WatchedProcess] = []

    def start(self, command: str, **more: Any) -> RemoteProcess:
        """Start a command."""
        kind = "command"
        if "sys.meta_path.insert" in command:
            kind = "receiver"
        elif quote_words([read_join_program()]) in command:
            kind = "channel"
        return self.event(f"{kind} start", lambda: self._start(command, kind, more), None)  # type: ignore[no-any-return]

    def _start(self, command: str, kind: str, more: dict[str, Any]) -> WatchedProcess:
        process = WatchedProcess(super().start(command, **more), self, kind)
        self.processes.append(process)
        return process

    def find(self, kind: str) -> WatchedProcess | None:
        """Return the last process of a kind."""
        return next((process for process in reversed(self.processes) if process.kind == kind), None)

    def event(self, name: str, run: Callable[[], Any], process: Any, data: bytes | memoryview = b"") -> Any:
        """Run one operation, and act before, halfway or after if its number has come."""
        with self.lock:
            number = len(self.events)
            self.events.append(name)
        if number != self.target:
            return run()
        if self.moment == "halfway" and len(data) > 1:
            process.process.write(memoryview(data)[: len(data) // 2])
        if self.moment != "after":
            self.act(self, process)
            if self.moment == "halfway" and len(data) > 1:
                return process.process.write(memoryview(data)[len(data) // 2 :])
            return run()
        result = run()
        self.act(self, process)
        return result


def list_event_cases(events: list[str]) -> list[tuple[int, str, str]]:
    """All (event, its name, moment); halfway only for what is sent."""
    return [
        (number, name, moment)
        for number, name in enumerate(events)
        for moment in MOMENTS
        if moment != "halfway" or name.endswith("write")
    ]
