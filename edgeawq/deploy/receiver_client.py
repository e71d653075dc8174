"""The host's side of the push protocol: it starts the receiver on the device and speaks with it."""

from __future__ import annotations

import contextlib
import json
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from edgeawq.deploy.receiver.limits import MAGIC, PROTOCOL
from edgeawq.deploy.receiver_errors import explain_answer, explain_no_greeting
from edgeawq.deploy.receiver_program import read_join_program, read_program
from edgeawq.deploy.release import Release
from edgeawq.deploy.transport import RemoteProcess, Transport, quote_words
from edgeawq.errors import EdgeawqError, TransferError

MAX_ANSWER_BYTES = 64 << 20
MAX_NOISE_BYTES = 64 << 10
MAX_EVENTS = 100  # before an answer, and one more for each second: the receiver sends one in five
LINE_TIMEOUT_S = 60.0  # for a line that has begun, and longer for a long one:
MIN_BYTES_PER_S = 1000.0
PINGS = 3


@dataclass(frozen=True)
class Greeting:
    """What the receiver says first."""

    root: str
    machine: str
    python: str
    executable: str


@dataclass(frozen=True)
class Plan:
    """What the device lacks of a release (indices of files), and the room there."""

    missing: tuple[int, ...]
    upload_bytes: int  # what of that no other file on the device has
    need_bytes: int
    free_bytes: int
    trust: dict[str, Any]


@dataclass(frozen=True)
class Missing:
    """Chunks [first, first + count) of a file, which the host has to send."""

    file: int
    first: int
    count: int


class Link:
    """Requests to a process on the device and its answers, over one channel."""

    def __init__(self, process: RemoteProcess, address: str) -> None:
        self.process = process
        self.address = address
        self._buffer = bytearray()

    def call(self, op: str, payload: bytes = b"", **arguments: Any) -> dict[str, Any]:
        """Send one request and return its answer; an answer that refuses raises the error it stands for."""
        self.write(encode({"op": op, **arguments}) + payload)
        return self.read_answer()

    def write(self, data: bytes | memoryview) -> None:
        """Send bytes. When the other side is gone, its own last words are a better error than that."""
        try:
            self.process.write(data)
        except TransferError as error:
            raise self._last_words(error) from error

    def _last_words(self, error: TransferError) -> EdgeawqError:
        try:
            self.read_answer()
        except EdgeawqError as refusal:
            if not isinstance(refusal, ConnectionLostError):
                return refusal
        return error

    def read_answer(self) -> dict[str, Any]:
        """Return the next answer, past signs of life."""
        started, events = time.monotonic(), 0
        while True:
            line = self.read_line(MAX_ANSWER_BYTES)
            if line is None:
                tail = self.process.stderr_tail()
                raise ConnectionLostError(
                    f"the connection to {self.address} was lost" + (f": {tail[-500:]}" if tail else ""),
                    remedy="run the command again: what has arrived is kept, and the running release is as it was",
                )
            answer = decode(line, self.address)
            if "event" in answer:
                events += 1
                if events > MAX_EVENTS + time.monotonic() - started:
                    raise TransferError(f"{self.address} sends events without end instead of an answer")
                continue
            if answer.get("ok") is not True:
                raise explain_answer(answer, self.address)
            return answer

    def read_line(self, limit: int) -> bytes | None:
        """Return the next line without its end; None when the other side has ended."""
        searched, began = 0, 0.0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > limit:
                raise TransferError(f"{self.address}: an answer is longer than {limit} bytes")
            if not searched:
                began = 0.0
            elif not began:
                began = time.monotonic()
            elif time.monotonic() - began > LINE_TIMEOUT_S + searched / MIN_BYTES_PER_S:
                raise TransferError(f"{self.address} sends an answer too slowly: {searched} bytes so far")
            block = self.process.read(1 << 16)
            if not block:
                return None
            self._buffer += block
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


class Answer(dict[str, Any]):
    """An object in an answer. A field that is not there is the device's mistake, not ours."""

    def __missing__(self, key: str) -> Any:
        raise TransferError(f"the receiver's answer is not understood: it has no {key!r}")


class ConnectionLostError(TransferError):
    """The other side has ended without a word."""


class ReceiverClient:
    """A session with the receiver on a device. Answers that refuse become the errors of edgeawq.errors."""

    def __init__(self, transport: Transport, *, python: str, root: str) -> None:
        self._transport = transport
        self._python = python
        self._planned: Release | None = None
        bootstrap, program = read_program()
        process = transport.start("exec " + quote_words([python, "-I", "-c", bootstrap, root]))
        self.link = Link(process, transport.address)
        try:
            with contextlib.suppress(TransferError):  # what ended before it read this says why by its exit code
                process.write(program)
            self.greeting = self._read_greeting(python)
        except BaseException:
            process.terminate()
            raise

    def call(self, op: str, payload: bytes = b"", **arguments: Any) -> dict[str, Any]:
        """Send one request and return its answer; an answer that refuses raises the error it stands for."""
        return self.link.call(op, payload, **arguments)

    def plan(self, release: Release, *, known: bool = False, signature: str = "") -> Plan:
        """Ask what of `release` is missing. DeviceUnfitError when it does not fit the device.

        known: the device has said that it has this release, so that its description need not be sent.
        """
        if known:
            answer = self.call("plan", release=release.identity, signature=signature)
        else:
            data = zlib.compress(release.data, 6)
            answer = self.call("plan", data, size=len(release.data), length=len(data), signature=signature)
        if answer.get("id") != release.identity:
            raise TransferError(f"{self.link.address}: the release description has arrived damaged")
        self._planned = release
        with self._understood():
            missing = tuple(int(index) for index in answer["missing"])
            if not all(0 <= index < len(release.files) for index in missing):
                raise ValueError
            plan = Plan(
                missing=missing,
                upload_bytes=int(answer["upload"]),
                need_bytes=int(answer["need"]),
                free_bytes=int(answer["free"]),
                trust=dict(answer["trust"]),
            )
        return plan

    def assemble(self) -> tuple[list[Missing], int]:
        """Let the device put together what it has of the planned release.

        Returns what is left to be sent, and how many bytes it found in other files there.
        """
        answer = self.call("assemble")
        assert self._planned is not None
        missing = []
        with self._understood():
            for entry in answer["missing"]:
                runs = entry[1] if len(entry) > 1 else [[0, 1]]
                missing += [Missing(int(entry[0]), int(first), int(count)) for first, count in runs]
            for run in missing:
                if not 0 <= run.file < len(self._planned.files) or run.first < 0 or run.count < 1:
                    raise ValueError
                if run.first + run.count > len(self._planned.files[run.file].chunks):
                    raise ValueError
            copied = int(answer["copied"])
        return missing, copied

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        """What does not fit in an answer is the device's mistake."""
        try:
            yield
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            raise TransferError(f"{self.link.address}: the receiver's answer is not understood") from error

    def measure_round_trip_s(self) -> float:
        """Return the shortest time that a small request and its answer took."""
        times = []
        for _ in range(PINGS):
            started = time.monotonic()
            self.call("ping")
            times.append(time.monotonic() - started)
        return min(times)

    def invite(self) -> Callable[[], Link | None]:
        """Let further channels join the upload; return what opens one, from any thread.

        It returns None where the device allows no more of them.
        """
        answer = self.call("channels")
        folder, secret = str(answer["folder"]), str(answer["secret"])

        def join() -> Link | None:
            link = None
            try:
                command = [self._python, "-I", "-c", read_join_program(), folder]
                link = Link(self._transport.start("exec " + quote_words(command)), self._transport.address)
                link.write(secret.encode())
                link.read_answer()
            except EdgeawqError:  # MaxSessions, say: fewer channels do it too
                if link is not None:
                    link.process.terminate()
                return None
            return link

        return join

    def close(self) -> None:
        """End the session; the receiver gives the lock back."""
        try:
            self.link.process.write(encode({"op": "bye"}))
            self.link.process.close_input()
            self.link.process.wait()
        except TransferError:
            self.link.process.terminate()

    def __enter__(self) -> ReceiverClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.link.process.terminate()

    def _read_greeting(self, python: str) -> Greeting:
        noise = bytearray()
        deadline = time.monotonic() + 120.0
        while len(noise) <= MAX_NOISE_BYTES and time.monotonic() < deadline:
            line = self.link.read_line(MAX_NOISE_BYTES)
            if line is None:
                break
            if MAGIC.encode() in line:
                answer = decode(line, self.link.address)
                if answer.get("protocol") != PROTOCOL:
                    raise TransferError(
                        f"{self.link.address}: protocol {answer.get('protocol')!r}, expected {PROTOCOL}"
                    )
                return Greeting(*(str(answer.get(key, "")) for key in ("root", "machine", "python", "executable")))
            noise += line  # a login script that prints something
        raise explain_no_greeting(self.link.process, self.link.address, python, bytes(noise))


def encode(message: dict[str, Any]) -> bytes:
    """Return a request as it goes over the wire."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes, address: str) -> dict[str, Any]:
    """Return the answer in a line; TransferError when it is none."""
    try:
        answer = json.loads(line, object_hook=Answer)
    except (ValueError, RecursionError):
        raise TransferError(f"{address}: the receiver's answer is not understood: {line[:200]!r}") from None
    if not isinstance(answer, dict):
        raise TransferError(f"{address}: the receiver's answer is not understood: {line[:200]!r}")
    return answer
