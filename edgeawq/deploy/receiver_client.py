"""The host's side of the push protocol: it starts the receiver on the device and speaks with it."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from edgeawq.deploy.receiver import BLOCK_BYTES, MAGIC, PROTOCOL
from edgeawq.deploy.receiver_errors import explain_answer, explain_no_greeting
from edgeawq.deploy.release import Release, ReleaseFile
from edgeawq.deploy.transport import RemoteProcess, Transport, quote_words
from edgeawq.errors import BundleError, TransferError

MAX_ANSWER_BYTES = 16 << 20
MAX_NOISE_BYTES = 64 << 10
SMALL_WRITE_BYTES = 256 << 10

# Runs on any Python: what is too old ends with code 97 instead of a syntax error.
_BOOTSTRAP = """
import os, sys
if sys.version_info < (3, 10): sys.exit(97)
source = b""
while len(source) < %d:
    block = os.read(0, %d - len(source))
    if not block: sys.exit(98)
    source += block
exec(compile(source, "edgeawq-receiver", "exec"), {"__name__": "__main__"})
"""


@dataclass(frozen=True)
class Greeting:
    """What the receiver says first."""

    root: str
    machine: str
    python: str
    executable: str


@dataclass(frozen=True)
class Missing:
    """An object that the device lacks; `resume_at` bytes of it are there already and hash to `resume_sha256`."""

    file: ReleaseFile
    resume_at: int = 0
    resume_sha256: str = ""


@dataclass(frozen=True)
class Plan:
    """What the device lacks of a release, and the room there."""

    missing: tuple[Missing, ...]
    need_bytes: int
    free_bytes: int

    @property
    def upload_bytes(self) -> int:
        """How many bytes are still to be sent."""
        return sum(entry.file.size - entry.resume_at for entry in self.missing)


class ReceiverClient:
    """A session with the receiver on a device. Answers that refuse become the errors of edgeawq.errors."""

    def __init__(self, transport: Transport, *, python: str, root: str) -> None:
        source = importlib.resources.files("edgeawq.deploy").joinpath("receiver.py").read_bytes()
        bootstrap = _BOOTSTRAP % (len(source), len(source))
        self._address = transport.address
        self._buffer = bytearray()
        self._process: RemoteProcess = transport.start(
            "exec " + quote_words([python, "-I", "-c", bootstrap.strip(), root])
        )
        try:
            self._process.write(source)
            self.greeting = self._read_greeting(python)
        except BaseException:
            self._process.terminate()
            raise

    def call(self, op: str, payload: bytes = b"", **arguments: Any) -> dict[str, Any]:
        """Send one request and return its answer; an answer that refuses raises the error it stands for."""
        self._process.write(_encode({"op": op, **arguments}) + payload)
        return self._read_answer()

    def plan(self, release: Release) -> Plan:
        """Ask what of `release` is missing. DeviceUnfitError when it does not fit the device."""
        answer = self.call("plan", release.data, size=len(release.data))
        if answer.get("id") != release.identity:
            raise TransferError(f"{self._address}: the release description has arrived damaged")
        missing = []
        for entry in answer["missing"]:
            file = release.files[entry[0]]
            resume = Missing(file, entry[1], entry[2]) if len(entry) == 3 else Missing(file)
            missing.append(resume)
        return Plan(tuple(missing), int(answer["need"]), int(answer["free"]))

    def upload(self, missing: Iterable[Missing], on_progress: Callable[[int], None]) -> None:
        """Send objects one after the other without waiting for answers in between; return when all are stored.

        `on_progress` is called with the number of bytes just sent. TransferError names what went wrong.
        """
        failure: list[BaseException] = []
        answered = threading.Event()

        def listen() -> None:
            try:
                self._read_answer()
            except BaseException as error:  # handed to the thread that sends
                failure.append(error)
                self._process.terminate()
            answered.set()

        listener = threading.Thread(target=listen, name="edgeawq-upload-answers", daemon=True)
        listener.start()
        try:
            pending = bytearray()
            for entry in missing:
                pending = self._send_object(entry, pending, on_progress)
            self._process.write(bytes(pending) + _encode({"op": "flush"}))
            while not answered.wait(0.5):
                pass
        except TransferError:
            # The device's own reason, if it sent one, is better than "the connection was closed".
            listener.join(5.0)
            if failure:
                raise failure[0] from None
            raise
        except BaseException:
            self._process.terminate()
            raise
        if failure:
            raise failure[0]

    def close(self) -> None:
        """End the session; the receiver gives the lock back."""
        try:
            self._process.write(_encode({"op": "bye"}))
            self._process.close_input()
            self._process.wait()
        except TransferError:
            self._process.terminate()

    def __enter__(self) -> ReceiverClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._process.terminate()

    def _send_object(self, entry: Missing, pending: bytearray, on_progress: Callable[[int], None]) -> bytearray:
        """Send one object; small ones are collected in `pending` so that they share packets."""
        file = entry.file
        try:
            stream = file.source.open("rb")
        except OSError as error:
            raise BundleError(f"{file.source} cannot be read: {error.strerror}", remedy="push again") from error
        with stream:
            offset = _match_prefix(stream, entry)
            if entry.resume_at and not offset:
                on_progress(-entry.resume_at)  # what the device has is not the beginning of this file after all
            header = {"op": "put", "sha256": file.sha256, "size": file.size, "offset": offset}
            pending += _encode(header)
            rest = file.size - offset
            block = bytearray(min(BLOCK_BYTES, rest))
            while rest:
                count = stream.readinto(memoryview(block)[: min(len(block), rest)])
                if not count:
                    raise BundleError(f"{file.source} became shorter while it was sent", remedy="push again")
                rest -= count
                if count <= SMALL_WRITE_BYTES:
                    pending += memoryview(block)[:count]
                else:
                    self._process.write(bytes(pending))
                    pending = bytearray()
                    self._process.write(memoryview(block)[:count])
                if len(pending) > SMALL_WRITE_BYTES:
                    self._process.write(bytes(pending))
                    pending = bytearray()
                on_progress(count)
        return pending

    def _read_greeting(self, python: str) -> Greeting:
        noise = bytearray()
        deadline = time.monotonic() + 120.0
        while len(noise) <= MAX_NOISE_BYTES and time.monotonic() < deadline:
            line = self._read_line(MAX_NOISE_BYTES)
            if line is None:
                break
            if MAGIC.encode() in line:
                answer = _decode(line, self._address)
                if answer.get("protocol") != PROTOCOL:
                    raise TransferError(f"{self._address}: protocol {answer.get('protocol')!r}, expected {PROTOCOL}")
                return Greeting(*(str(answer.get(key, "")) for key in ("root", "machine", "python", "executable")))
            noise += line  # a login script that prints something
        raise explain_no_greeting(self._process, self._address, python, bytes(noise))

    def _read_answer(self) -> dict[str, Any]:
        while True:
            line = self._read_line(MAX_ANSWER_BYTES)
            if line is None:
                tail = self._process.stderr_tail()
                raise TransferError(
                    f"the connection to {self._address} was lost" + (f": {tail[-500:]}" if tail else ""),
                    remedy="run the command again: what has arrived is kept, and the running release is as it was",
                )
            answer = _decode(line, self._address)
            if "event" in answer:
                continue
            if answer.get("ok") is not True:
                raise explain_answer(answer, self._address)
            return answer

    def _read_line(self, limit: int) -> bytes | None:
        """Return the next line without its end; None when the receiver has ended."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > limit:
                raise TransferError(f"{self._address}: an answer is longer than {limit} bytes")
            block = self._process.read(1 << 16)
            if not block:
                return None
            self._buffer += block
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


def _match_prefix(stream: Any, entry: Missing) -> int:
    """Return where to go on: `resume_at` when the device has the beginning of this very file, else 0."""
    if not 0 < entry.resume_at <= entry.file.size:
        return 0
    state = hashlib.sha256()
    left = entry.resume_at
    while left:
        block = stream.read(min(BLOCK_BYTES, left))
        if not block:
            break
        state.update(block)
        left -= len(block)
    if not left and state.hexdigest() == entry.resume_sha256:
        return entry.resume_at
    stream.seek(0)
    return 0


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _decode(line: bytes, address: str) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        raise TransferError(f"{address}: the receiver's answer is not understood: {line[:200]!r}") from None
    if not isinstance(answer, dict):
        raise TransferError(f"{address}: the receiver's answer is not understood: {line[:200]!r}")
    return answer
