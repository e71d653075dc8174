"""What a way to reach a device has to offer: run, put, get, start, and a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Protocol

from edgeawq.errors import TransferError

MAX_OUTPUT_BYTES = 4 << 20
STALL_TIMEOUT_S = 60.0
DEAD_PEER_S = 60.0


@dataclass(frozen=True)
class CommandResult:
    """The end of a command on a device."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class RemoteProcess(Protocol):
    """A running command on a device, with bytes going in and out. One thread may write while another reads."""

    def write(self, data: bytes | memoryview) -> None:
        """Send all of `data` to its standard input. TransferError when it is gone or takes nothing for too long."""

    def read(self, size: int) -> bytes:
        """Return 1 to `size` bytes of its standard output; b"" at the end. TransferError after a long silence."""

    def close_input(self) -> None:
        """Tell it that nothing more will come."""

    def wait(self) -> int:
        """Wait for its end and return the exit code; -1 when the connection was lost before it was told."""

    def stderr_tail(self) -> str:
        """Return the last lines that it wrote to standard error, for messages."""

    def terminate(self) -> None:
        """Cut the connection to it at once, from any thread; it sees the end of its input."""


class Transport(Protocol):
    """A connection to one device. Paths are the device's; "~" is not expanded: commands are for /bin/sh."""

    @property
    def address(self) -> str:
        """Who and where, for messages: "pi@pi4.local:22"."""

    def start(self, command: str, *, stall_timeout_s: float = STALL_TIMEOUT_S) -> RemoteProcess:
        """Start a /bin/sh command with pipes on its standard input and output."""

    def run(self, command: str, *, stdin: bytes = b"", stall_timeout_s: float = STALL_TIMEOUT_S) -> CommandResult:
        """Run a /bin/sh command to its end. `stdin` is at most 64 KiB, the output at most MAX_OUTPUT_BYTES."""

    def put(self, stream: IO[bytes], path: str) -> None:
        """Write `stream` to the file `path` on the device: temporary name, fsync, rename."""

    def get(self, path: str, stream: IO[bytes], *, limit: int) -> None:
        """Copy the file `path` of the device into `stream`. TransferError when it is longer than `limit` bytes."""

    def exists(self, path: str) -> bool:
        """True when `path` is there on the device."""

    def run_terminal(self, command: str) -> int:
        """Run a /bin/sh command on this process's terminal (or pipes, where there is none); return its exit code."""

    def close(self) -> None:
        """End the connection."""

    def __enter__(self) -> Transport: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class TransportBase:
    """The parts of a transport that follow from `start`."""

    def start(self, command: str, *, stall_timeout_s: float = STALL_TIMEOUT_S) -> RemoteProcess:
        """Start a /bin/sh command with pipes on its standard input and output."""
        raise NotImplementedError

    def run(self, command: str, *, stdin: bytes = b"", stall_timeout_s: float = STALL_TIMEOUT_S) -> CommandResult:
        """Run a /bin/sh command to its end. `stdin` is at most 64 KiB, the output at most MAX_OUTPUT_BYTES."""
        process = self.start(command, stall_timeout_s=stall_timeout_s)
        try:
            if stdin:
                process.write(stdin)
            process.close_input()
            output = _read_to_end(process)
            code = process.wait()
        except BaseException:
            process.terminate()
            raise
        return CommandResult(code, output, process.stderr_tail().encode())

    def close(self) -> None:
        """End the connection."""
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def put(self, stream: IO[bytes], path: str) -> None:
        """Write `stream` to the file `path` on the device: temporary name, fsync, rename."""
        target = shlex.quote(path)
        process = self.start(f"cat > {target}.part && sync {target}.part && mv -f {target}.part {target}")
        try:
            while block := stream.read(1 << 20):
                process.write(block)
            process.close_input()
            _read_to_end(process)
            if code := process.wait():
                raise TransferError(f"{path} could not be written (exit code {code}): {process.stderr_tail()}")
        except BaseException:
            process.terminate()
            raise

    def get(self, path: str, stream: IO[bytes], *, limit: int) -> None:
        """Copy the file `path` of the device into `stream`. TransferError when it is longer than `limit` bytes."""
        process = self.start(f"exec cat {shlex.quote(path)}")
        try:
            process.close_input()
            total = 0
            while block := process.read(1 << 20):
                total += len(block)
                if total > limit:
                    raise TransferError(f"{path} on the device is longer than the limit of {limit} bytes")
                stream.write(block)
            if code := process.wait():
                raise TransferError(f"{path} could not be read (exit code {code}): {process.stderr_tail()}")
        except BaseException:
            process.terminate()
            raise

    def exists(self, path: str) -> bool:
        """True when `path` is there on the device."""
        return self.run(f"test -e {shlex.quote(path)}").exit_code == 0


def wrap_command(command: str) -> str:
    """Return `command` for a login shell of any kind (bash, fish, csh, …): it is run by /bin/sh."""
    return f"exec /bin/sh -c {shlex.quote(command)}"


def quote_words(words: Sequence[str]) -> str:
    """Join words into one /bin/sh command line; a leading "~/" of a word becomes "$HOME"/."""
    return " ".join(_quote_word(word) for word in words)


def _read_to_end(process: RemoteProcess) -> bytes:
    blocks: list[bytes] = []
    total = 0
    while block := process.read(1 << 16):
        total += len(block)
        if total > MAX_OUTPUT_BYTES:
            raise TransferError(f"a command on the device printed more than {MAX_OUTPUT_BYTES} bytes and was ended")
        blocks.append(block)
    return b"".join(blocks)


def _quote_word(word: str) -> str:
    if word == "~":
        return '"$HOME"'
    if word.startswith("~/"):
        return '"$HOME"/' + shlex.quote(word[2:])
    return shlex.quote(word)
