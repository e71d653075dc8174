from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from edgeawq.deploy.receiver import wire as wire_module
from edgeawq.deploy.receiver.limits import ALIVE_EVERY_S, MAX_LINE_BYTES
from edgeawq.deploy.receiver.refusal import HostGone, Refusal
from edgeawq.deploy.receiver.wire import Wire


class Pipes:
    """A wire, and the host's ends of it."""

    def __init__(self) -> None:
        reader, self.to_wire = os.pipe()
        self.from_wire, writer = os.pipe()
        self.wire = Wire(reader, writer)
        self.open = {reader, self.to_wire, self.from_wire, writer}

    def close(self, descriptor: int) -> None:
        self.open.discard(descriptor)
        os.close(descriptor)


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pipes = Pipes()
    yield pipes
    for descriptor in list(pipes.open):
        pipes.close(descriptor)


def test_lines_and_bytes_in_blocks_of_any_size(pipes: Pipes) -> None:
    payload = os.urandom(5000)
    stream = b'{"a":1}\n' + payload + b'{"b":"\xc3\xa4"}\n{}\n'

    def write() -> None:
        for at in range(0, len(stream), 7):
            os.write(pipes.to_wire, stream[at : at + 7])

    thread = threading.Thread(target=write)
    thread.start()
    assert pipes.wire.read_line() == {"a": 1}
    assert pipes.wire.read_exactly(5000) == payload
    assert pipes.wire.read_exactly(0) == b""
    assert pipes.wire.read_line() == {"b": "ä"} and pipes.wire.read_line() == {}
    thread.join()


@pytest.mark.parametrize("line", [b"x\n", b"[1]\n", b"\xff\n", b"[" * 40_000 + b"\n", b"\n", b"NaN\n"])
def test_what_is_no_request_is_refused(line: bytes, pipes: Pipes) -> None:
    os.write(pipes.to_wire, line)
    with pytest.raises(Refusal) as caught:
        pipes.wire.read_line()
    assert caught.value.details["fatal"]


def test_a_line_without_end_is_refused(pipes: Pipes) -> None:
    thread = threading.Thread(target=lambda: os.write(pipes.to_wire, b"x" * (MAX_LINE_BYTES + 10)))
    thread.start()
    with pytest.raises(Refusal, match="longer than"):
        pipes.wire.read_line()
    thread.join()


@pytest.mark.parametrize("sent", [b"", b'{"op"', b"12345"])
def test_the_end_of_the_connection(sent: bytes, pipes: Pipes) -> None:
    os.write(pipes.to_wire, sent)
    pipes.close(pipes.to_wire)
    with pytest.raises(HostGone):
        if sent == b"12345":
            pipes.wire.read_exactly(6)
        else:
            pipes.wire.read_line()


def test_a_silent_host_is_given_up(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "IDLE_TIMEOUT_S", 0.1)
    with pytest.raises(HostGone, match="silent"):
        pipes.wire.read_line()
    os.write(pipes.to_wire, b"abc")
    with pytest.raises(HostGone, match="silent"):
        pipes.wire.read_exactly(4)


def test_a_host_that_reads_nothing_is_given_up(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "IDLE_TIMEOUT_S", 0.1)
    with pytest.raises(HostGone, match="took nothing"):
        for _ in range(100):
            pipes.wire.send({"text": "x" * 10_000})


def test_a_host_that_has_closed_its_end_is_gone(pipes: Pipes) -> None:
    pipes.close(pipes.from_wire)
    with pytest.raises(HostGone):
        pipes.wire.send({"ok": True})


def test_answers_of_several_threads_do_not_mix(pipes: Pipes) -> None:
    def send(number: int) -> None:
        for _ in range(50):
            pipes.wire.send({"n": str(number) * 3000})

    with os.fdopen(pipes.from_wire, "rb") as stream, ThreadPoolExecutor(4) as pool:
        pipes.open.discard(pipes.from_wire)
        futures = [pool.submit(send, number) for number in range(4)]
        lines = [stream.readline() for _ in range(200)]
        assert all(future.result() is None for future in futures)
    assert {len(line) for line in lines} == {3009} and {len(set(line[6:-3])) for line in lines} == {1}


def test_says_that_it_is_alive_during_long_work(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(pipes.wire, "send", sent.append)
    pipes.wire.say_alive()
    assert sent == []
    pipes.wire.last_sent -= ALIVE_EVERY_S
    pipes.wire.say_alive()
    assert sent == [{"event": "alive"}]


def test_waits_for_work_and_hands_on_its_outcome(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "ALIVE_EVERY_S", 0.0)
    with ThreadPoolExecutor(1) as pool:
        assert pipes.wire.wait_for(pool.submit(lambda: [time.sleep(1.2), 5][1])) == 5
        assert os.read(pipes.from_wire, 100).startswith(b'{"event":"alive"}\n')
        with pytest.raises(ZeroDivisionError):
            pipes.wire.wait_for(pool.submit(lambda: 1 // 0))
