"""A device that is slow, silent or never stops; a host that is slow, silent or never stops."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeawq.deploy import receiver_client
from edgeawq.deploy.pipe_process import PipeProcess
from edgeawq.deploy.receiver.limits import MAGIC, PROTOCOL
from edgeawq.deploy.transport import RemoteProcess
from edgeawq.errors import EdgeawqError
from tests.deploy.faults.harness import QUICK, HarnessTransport, Stage, case, wait_until_unlocked
from tests.deploy.invariants import answer
from tests.deploy.receiver.driver import CHUNK, Wire, describe

GREETING = json.dumps(
    {"ok": True, "magic": MAGIC, "protocol": PROTOCOL, "root": "/r", "machine": "m", "python": "3", "executable": "p"}
)
PEERS = {
    "is silent": "time.sleep(600)",
    "greets and is silent": "greet(); time.sleep(600)",
    "greets byte by byte": "[(out(GREETING[n % len(GREETING):][:1]), time.sleep(0.05)) for n in range(10**9)]",
    "prints noise without end": "[out('noise ' * 1000 + '\\n') for _ in iter(int, 1)]",
    "prints a line without end": "[out('x' * 100000) for _ in iter(int, 1)]",
    "answers byte by byte": "greet(); [(out('x'), time.sleep(0.05)) for _ in iter(int, 1)]",
    "answers without end": "greet(); [out('x' * 100000) for _ in iter(int, 1)]",
    "is alive without end": 'greet(); [out(\'{"event": "alive"}\\n\' * 1000) for _ in iter(int, 1)]',
    "answers with nonsense": "greet(); [(sys.stdin.readline(), out('[[[[\\n')) for _ in iter(int, 1)]",
    "answers with too little": "greet(); [(sys.stdin.readline(), out('{\"ok\": true}\\n')) for _ in iter(int, 1)]",
    "answers with the wrong types": "greet(); [(sys.stdin.readline(), out(WRONG)) for _ in iter(int, 1)]",
    "refuses oddly": "greet(); [(sys.stdin.readline(), out(ODD)) for _ in iter(int, 1)]",
    "closes its output": "greet(); os.close(1); time.sleep(600)",
    "never reads": "greet(); time.sleep(600)",
    "prints errors without end": "greet(); [sys.stderr.write('x' * 100000) for _ in iter(int, 1)]",
}
WRONG = '{"ok": true, "current": [], "releases": [{"id": 3}], "trust": 4, "id": {}, "missing": [[1]], "upload": "x"}\\n'
ODD = '{"ok": 5, "code": [1], "what": {}}\\n'


class FakeDevice(HarnessTransport):
    """A device whose receiver is something else."""

    def __init__(self, behaviour: str) -> None:
        super().__init__()
        self.script = (
            f"import os, sys, time\nGREETING = {GREETING!r} + '\\n'\nWRONG = '{WRONG}'\nODD = '{ODD}'\n"
            "def out(text): sys.stdout.write(text); sys.stdout.flush()\n"
            "def greet(): out(GREETING)\n" + behaviour
        )

    def start(self, command: str, **more: Any) -> RemoteProcess:
        """Start the fake, with a short patience."""
        return PipeProcess([sys.executable, "-c", self.script], stall_timeout_s=1.0)


@pytest.mark.parametrize("behaviour", PEERS)
def test_a_bad_device(stage: Stage, behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_client, "LINE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(receiver_client, "MIN_BYTES_PER_S", 1e6)
    monkeypatch.setattr(receiver_client, "MAX_ANSWER_BYTES", 4 << 20)
    with case("slow, silent or endless device", "the push ends with an error, in bounded time and memory"):
        done: list[BaseException] = []

        def run() -> None:
            try:
                stage.push(stage.folder / "nowhere", transport=FakeDevice(PEERS[behaviour]))
            except BaseException as error:
                done.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(120)
        assert not thread.is_alive(), "the push hangs"
        assert isinstance(done[0], EdgeawqError), done


# Every wait of the receiver takes half a second at most, instead of three minutes.
IMPATIENT = (
    "import select\n_select = select.select\n"
    "select.select = lambda r, w, x, t=None: _select(r, w, x, min(t or 0.5, 0.5))\n"
)


@contextlib.contextmanager
def receiver(stage: Stage, prelude: str = IMPATIENT) -> Iterator[tuple[Wire, Path]]:
    root = stage.fresh()
    wire = Wire(root, prelude=prelude)
    try:
        yield wire, root
    finally:
        wire.kill()


CHECKED = "the receiver ends, gives the lock back and keeps nothing wrong; the next push completes"


@pytest.mark.parametrize("after", ["greeting", "lock", "half a line", "half a chunk"])
def test_a_silent_host(stage: Stage, after: str) -> None:
    with case("silent host", CHECKED), receiver(stage) as (wire, root):
        if after != "greeting":
            wire.ask("lock", owner="me")
        if after == "half a line":
            wire.send(b'{"op": "sta')
        if after == "half a chunk":
            wire.plan(describe(bundle__w=os.urandom(2 * CHUNK), chunked=("bundle__w",)))
            wire.ask("assemble")
            wire.send({"op": "put", "file": 0, "chunk": 0, "length": CHUNK}, os.urandom(CHUNK // 2))
        assert wire.process.wait(30) == 0 and not (root / "lock").exists()
        stage.check_and_complete(root, ("old",))


@pytest.mark.parametrize("kind", ["bytes", "lines", "pings", "plans", "puts"])
def test_an_endless_host(stage: Stage, kind: str) -> None:
    """It sends and sends, and reads no answers."""
    with case("endless host", CHECKED), receiver(stage) as (wire, root):
        wire.ask("lock", owner="me")
        block = {
            "bytes": os.urandom(1 << 16).replace(b"\n", b"x"),
            "lines": b"x\n" * 1000,
            "pings": b'{"op":"ping"}\n' * 1000,
            "plans": b'{"op":"plan","size":33554432,"length":33554432}\n' + bytes(1 << 20),
            "puts": b'{"op":"put","file":0,"chunk":0,"length":10}\n0123456789',
        }[kind]
        os.set_blocking(wire.stdin.fileno(), False)
        deadline = time.monotonic() + 60
        with contextlib.suppress(BrokenPipeError):
            while time.monotonic() < deadline and wire.process.poll() is None:
                try:
                    os.write(wire.stdin.fileno(), block)
                except BlockingIOError:
                    time.sleep(0.01)
        assert wire.process.wait(30) == 0 and not (root / "lock").exists()
        stage.check_and_complete(root, ("old",))


@pytest.mark.parametrize("stopped", [False, True])
def test_a_slow_host_does_not_lock_the_device_for_ever(stage: Stage, stopped: bool) -> None:
    """One byte now and then, or a process that was stopped: it is alive, so only --break-lock goes past it."""
    with case("slow host", "another push may break the lock; the slow one changes nothing any more"):
        with receiver(stage, prelude="") as (wire, root):
            wire.begin(describe(bundle__w=os.urandom(2 * CHUNK), chunked=("bundle__w",)))
            wire.send({"op": "put", "file": 0, "chunk": 0, "length": CHUNK})
            ended = threading.Event()

            def trickle() -> None:
                with contextlib.suppress(OSError, ValueError):
                    while not ended.wait(0.05):
                        wire.send(b"x")

            thread = threading.Thread(target=trickle)
            thread.start()
            if stopped:
                wire.process.send_signal(signal.SIGSTOP)
            stage.push(root, options=dataclasses.replace(QUICK, break_lock=True))
            ended.set()
            thread.join()
            if stopped:
                wire.process.send_signal(signal.SIGCONT)
        assert answer(root) == "new" and wait_until_unlocked(root)
        stage.check_and_complete(root, ("new",))
