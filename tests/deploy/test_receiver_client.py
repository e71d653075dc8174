from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from edgeawq.deploy import receiver_client
from edgeawq.deploy.receiver.limits import MAGIC, PROTOCOL
from edgeawq.deploy.receiver_client import ConnectionLostError, Link, Missing, ReceiverClient
from edgeawq.deploy.release import ReleaseFile, describe_release
from edgeawq.deploy.transport import Transport
from edgeawq.errors import BundleError, DeployError, DeviceUnfitError, EdgeawqError, TransferError

GREETING = {
    "ok": True,
    "protocol": PROTOCOL,
    "magic": MAGIC,
    "root": "/r",
    "machine": "m",
    "python": "3.11.2",
    "executable": "/p",
}


def line(**answer: Any) -> bytes:
    return json.dumps(answer).encode() + b"\n"


class FakeProcess:
    """The other side, which says what it was told to, in blocks of `block` bytes."""

    def __init__(
        self, said: bytes | Iterator[bytes], *, code: int = 0, block: int = 1 << 16, gone: bool = False
    ) -> None:
        self.blocks = (
            said if isinstance(said, Iterator) else iter([said[at : at + block] for at in range(0, len(said), block)])
        )
        self.code = code
        self.gone = gone
        self.written = bytearray()
        self.terminated = False

    def write(self, data: bytes | memoryview) -> None:
        if self.gone:
            raise TransferError("the command there has ended")
        self.written += data

    def read(self, size: int) -> bytes:
        return next(self.blocks, b"")

    def close_input(self) -> None:
        pass

    def wait(self) -> int:
        return self.code

    def stderr_tail(self) -> str:
        return "its last words"

    def terminate(self) -> None:
        self.terminated = True


class FakeTransport:
    address = "pi@board:22"

    def __init__(self, *processes: FakeProcess) -> None:
        self.processes = list(processes)
        self.commands: list[str] = []

    def start(self, command: str) -> FakeProcess:
        self.commands.append(command)
        return self.processes.pop(0)


def connect(*processes: FakeProcess) -> ReceiverClient:
    transport = cast(Transport, FakeTransport(*processes))
    return ReceiverClient(transport, python="/usr/bin/python3", root="~/.edgeawq")


def test_greets_past_the_noise_of_a_login_script() -> None:
    said = b"Welcome to board\n\xff\n{}\n" + line(**GREETING)
    for block in (1, 5, 1000):
        client = connect(FakeProcess(said, block=block))
        assert (client.greeting.root, client.greeting.python) == ("/r", "3.11.2")


@pytest.mark.parametrize(
    ("process", "error", "message"),
    [
        (FakeProcess(b"", code=97), DeviceUnfitError, "older than Python 3.10"),
        (FakeProcess(b"", code=127), DeviceUnfitError, "no /usr/bin/python3"),
        (FakeProcess(b"", code=-1), TransferError, "was lost"),
        (FakeProcess(b"some noise", code=1), DeployError, "its last words"),
        (FakeProcess(iter(lambda: b"noise\n" * 1000, b"")), DeployError, "did not start"),
        (FakeProcess(iter(lambda: b"x" * 10_000, b"")), TransferError, "longer than"),
        (FakeProcess(line(**{**GREETING, "protocol": 77})), TransferError, "protocol 77"),
        (FakeProcess(MAGIC.encode() + b" is not JSON\n"), TransferError, "not understood"),
    ],
)
def test_what_does_not_greet_is_ended(process: FakeProcess, error: type[EdgeawqError], message: str) -> None:
    with pytest.raises(error, match=message):
        connect(process)
    assert process.terminated


def test_answers_past_signs_of_life() -> None:
    link = Link(FakeProcess(line(event="alive") * 3 + line(ok=True, n=5), block=3), "board")
    assert link.call("status")["n"] == 5


def test_refusals_become_errors() -> None:
    answers = line(ok=False, code="manifest", what="bad") + line(ok=False, code="?", what="odd") + line(code="x")
    link = Link(FakeProcess(answers), "board")
    with pytest.raises(BundleError, match="bad"):
        link.call("plan")
    with pytest.raises(DeployError, match="odd"):
        link.call("plan")
    with pytest.raises(DeployError):
        link.call("plan")
    with pytest.raises(ConnectionLostError, match="its last words"):
        link.call("plan")


@pytest.mark.parametrize("said", [b"[]\n", b"x\n", b"\xff\n", b"[" * 50_000 + b"\n", b"5\n"])
def test_what_is_no_answer_is_named(said: bytes) -> None:
    with pytest.raises(TransferError, match="not understood"):
        Link(FakeProcess(said), "board").call("status")


def test_an_endless_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_client, "MAX_ANSWER_BYTES", 100_000)
    with pytest.raises(TransferError, match="longer than 100000"):
        Link(FakeProcess(iter(lambda: b"x" * 60_000, b"")), "board").call("status")


def test_endless_signs_of_life_are_given_up() -> None:
    with pytest.raises(TransferError, match="without end"):
        Link(FakeProcess(iter(lambda: line(event="alive") * 10, b"")), "board").call("status")


def test_an_answer_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_client, "LINE_TIMEOUT_S", 0.0)
    monkeypatch.setattr(receiver_client, "MIN_BYTES_PER_S", 1e9)
    with pytest.raises(TransferError, match="too slowly"):
        Link(FakeProcess(iter(lambda: b"x", b"")), "board").call("status")


def test_its_own_last_words_are_the_better_error() -> None:
    refusal = line(ok=False, code="no-space", what="the disk is full", fatal=True)
    with pytest.raises(DeviceUnfitError, match="the disk is full"):
        Link(FakeProcess(refusal, gone=True), "board").call("flush")
    with pytest.raises(TransferError, match="has ended"):
        Link(FakeProcess(b"", gone=True), "board").call("flush")


def make_plan(**changes: Any) -> bytes:
    release = describe_release(name="n", profile="p", machine="m", python="3.11", files=[])
    answer = {"ok": True, "id": release.identity, "missing": [], "upload": 0, "need": 1, "free": 2, "trust": {}}
    return line(**{**answer, **changes})


def test_a_plan_for_another_release_is_not_believed() -> None:
    release = describe_release(name="n", profile="p", machine="m", python="3.11", files=[])
    client = connect(FakeProcess(line(**GREETING) + make_plan() + make_plan(id="0" * 16)))
    assert client.plan(release).free_bytes == 2
    with pytest.raises(TransferError, match="damaged"):
        client.plan(release, known=True)


def test_what_is_missing() -> None:
    small, large = (((5, "0" * 64),), ((5, "0" * 64), (6, "1" * 64), (7, "2" * 64)))
    files = [ReleaseFile("bundle/a", Path("a"), small), ReleaseFile("bundle/b", Path("b"), large)]
    release = describe_release(name="n", profile="p", machine="m", python="3.11", files=files)
    said = line(**GREETING) + make_plan(id=release.identity, missing=[0, 1])
    good = line(ok=True, missing=[[0], [1, [[0, 1], [2, 1]]]], copied=9)
    bad = [
        [[2]],
        [[-1]],
        [[1, [[3, 1]]]],
        [[1, [[2, 2]]]],
        [[1, [[0, 0]]]],
        [[1, [[-1, 1]]]],
        [["x"]],
        5,
        [5],
        [[]],
        {},
    ]
    said += good + b"".join(line(ok=True, missing=missing, copied=0) for missing in bad[:-1])
    client = connect(FakeProcess(said + line(ok=True) + line(ok=True, missing=[], copied="x")))
    assert client.plan(release).missing == (0, 1)
    assert client.assemble() == ([Missing(0, 0, 1), Missing(1, 0, 1), Missing(1, 2, 1)], 9)
    for _ in range(len(bad) + 1):
        with pytest.raises(TransferError, match="not understood"):
            client.assemble()


@pytest.mark.parametrize("changes", [{"missing": [0]}, {"missing": 5}, {"missing": ["x"]}, {"trust": 5}, {"need": []}])
def test_a_plan_that_makes_no_sense(changes: dict[str, Any]) -> None:
    release = describe_release(name="n", profile="p", machine="m", python="3.11", files=[])
    client = connect(FakeProcess(line(**GREETING) + make_plan(**changes)))
    with pytest.raises(TransferError, match="not understood"):
        client.plan(release)


def test_as_many_channels_as_the_device_allows() -> None:
    session = FakeProcess(line(**GREETING) + line(ok=True, folder="/r/lock", secret="s" * 32))
    good, bad = FakeProcess(line(ok=True, joined=True)), FakeProcess(b"", code=1)
    join = connect(session, good, bad).invite()
    links = [join(), join()]
    assert links[0] is not None and links[0].process is good and links[1] is None
    assert good.written == b"s" * 32 and bad.terminated and not good.terminated


def test_says_bye_or_cuts_the_connection() -> None:
    process = FakeProcess(line(**GREETING))
    with connect(process):
        pass
    assert process.written.endswith(b'{"op":"bye"}\n') and not process.terminated
    process = FakeProcess(line(**GREETING))
    with pytest.raises(KeyboardInterrupt), connect(process):
        raise KeyboardInterrupt
    assert process.terminated
