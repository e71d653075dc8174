"""This process's terminal, connected to a command on the device."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from types import FrameType

import paramiko

BLOCK_BYTES = 65536


def local_terminal() -> tuple[str, int, int] | None:
    """Return (TERM, columns, rows) when standard input and output are a terminal, else None."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    return os.environ.get("TERM", "xterm-256color"), *read_size(sys.stdout.fileno())


def read_size(descriptor: int) -> tuple[int, int]:
    """Return (columns, rows) of a terminal; 80 × 24 when it does not know (a serial console)."""
    size = os.get_terminal_size(descriptor)
    return (size.columns, size.lines) if size.columns and size.lines else (80, 24)


def relay_terminal(channel: paramiko.Channel, size: tuple[int, int]) -> int:
    """Connect the terminal, in raw mode, to `channel` until the command ends; return its exit code.

    size: (columns, rows) that the device was told when the channel was opened.
    In raw mode Ctrl-C, Ctrl-D and Ctrl-Z travel as bytes: the device's terminal makes signals of them.
    """
    stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
    channel.settimeout(0.0)
    with _raw_terminal(stdin), _forward_resize(channel) as wakeup:
        if read_size(stdout) != size:  # changed before anybody listened
            channel.resize_pty(*read_size(stdout))
        watched = [channel, stdin, wakeup]
        while True:
            ready, _, _ = select.select(watched, [], [])
            if wakeup in ready:
                os.read(wakeup, BLOCK_BYTES)
                channel.resize_pty(*read_size(stdout))
            if channel in ready:
                try:
                    block = channel.recv(BLOCK_BYTES)
                except TimeoutError:
                    block = None
                if block == b"":
                    break
                if block:
                    _write_all(stdout, block)
            if stdin in ready:
                typed = os.read(stdin, BLOCK_BYTES)
                if typed:
                    _send_all(channel, typed)
                else:
                    watched.remove(stdin)
                    channel.shutdown_write()
    return _exit_code(channel)


def relay_pipes(channel: paramiko.Channel) -> int:
    """Connect standard input, output and error to `channel` as plain pipes; return the command's exit code."""
    feeder = threading.Thread(target=_feed_input, args=(channel,), daemon=True)
    feeder.start()
    stdout, stderr = sys.stdout.fileno(), sys.stderr.fileno()
    channel.settimeout(None)
    error_reader = threading.Thread(target=_copy_stderr, args=(channel, stderr), daemon=True)
    error_reader.start()
    while block := channel.recv(BLOCK_BYTES):
        _write_all(stdout, block)
    error_reader.join(5.0)
    return _exit_code(channel)


def _feed_input(channel: paramiko.Channel) -> None:
    with contextlib.suppress(OSError):
        while block := os.read(sys.stdin.fileno(), BLOCK_BYTES):
            channel.sendall(block)
        channel.shutdown_write()


def _copy_stderr(channel: paramiko.Channel, stderr: int) -> None:
    with contextlib.suppress(OSError):
        while block := channel.recv_stderr(BLOCK_BYTES):
            _write_all(stderr, block)


def _exit_code(channel: paramiko.Channel) -> int:
    if not channel.status_event.wait(10.0):
        raise EOFError("the connection ended before the command did")
    code = int(channel.recv_exit_status())
    if code < 0:
        raise EOFError("the command was ended by a signal, or the connection was lost")
    return code


def _send_all(channel: paramiko.Channel, data: bytes) -> None:
    channel.settimeout(30.0)
    try:
        channel.sendall(data)
    finally:
        channel.settimeout(0.0)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


@contextlib.contextmanager
def _raw_terminal(descriptor: int) -> Iterator[None]:
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _forward_resize(channel: paramiko.Channel) -> Iterator[int]:
    """Yield a descriptor that becomes readable when the window was resized (the handler itself must do little)."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def note_resize(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writer, b"w")

    before = signal.signal(signal.SIGWINCH, note_resize)
    try:
        yield reader
    finally:
        signal.signal(signal.SIGWINCH, before)
        os.close(reader)
        os.close(writer)
