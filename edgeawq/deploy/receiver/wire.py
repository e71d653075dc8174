"""Requests, answers and blocks of bytes on a pair of pipes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from .limits import ALIVE_EVERY_S, IDLE_TIMEOUT_S, MAX_LINE_BYTES, PIPE_BYTES
from .refusal import HostGone, Refusal

T = TypeVar("T")


class Wire:
    """Lines of JSON, some followed by bytes. One thread reads; any may send."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader = reader
        self.writer = writer
        # Whoever fills the pipe and this process take turns for each 64 KiB that one usually holds.
        with contextlib.suppress(OSError):  # not a pipe, or no more of them for this user
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.buffer = bytearray()
        self.block = bytearray()
        self.other_block = bytearray()
        self.last_sent = time.monotonic()
        self.sending = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        data = memoryview(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        with self.sending:
            try:
                while data:
                    # What a pipe takes at once: a host that reads nothing must not keep us, and the lock, for ever.
                    if not select.select([], [self.writer], [], IDLE_TIMEOUT_S)[1]:
                        raise HostGone(f"the host took nothing for {IDLE_TIMEOUT_S:.0f} s")
                    data = data[os.write(self.writer, data[: select.PIPE_BUF]) :]
            except OSError as error:
                raise HostGone(str(error)) from error
            self.last_sent = time.monotonic()

    def say_alive(self) -> None:
        """Send a sign of life if nothing was sent for a while: the host gives up a silent device."""
        if time.monotonic() - self.last_sent >= ALIVE_EVERY_S:
            self.send({"event": "alive"})

    def wait_for(self, future: Future[T]) -> T:
        """Wait for work in another thread, and tell the host meanwhile that we are alive: SD cards can take minutes."""
        while not wait([future], timeout=1.0).done:
            self.say_alive()
        return future.result()

    def read_line(self) -> dict[str, Any]:
        """Return the next request."""
        while True:
            end = self.buffer.find(b"\n")
            if end >= 0:
                break
            if len(self.buffer) > MAX_LINE_BYTES:
                raise Refusal("protocol", f"a request is longer than {MAX_LINE_BYTES} bytes", fatal=True)
            self._wait()
            data = os.read(self.reader, MAX_LINE_BYTES)
            if not data:
                raise HostGone("the connection has ended")
            self.buffer += data
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise Refusal("protocol", "a request is not valid JSON", fatal=True) from None
        if not isinstance(message, dict):
            raise Refusal("protocol", "a request is not a JSON object", fatal=True)
        return message

    def swap_blocks(self) -> None:
        """Let what was read last stay valid for one more call of read_exactly."""
        self.block, self.other_block = self.other_block, self.block

    def read_exactly(self, size: int, on_bytes: Callable[[memoryview], object] = len) -> memoryview:
        """Return the next `size` bytes, valid until the next call; the caller has checked that they fit the memory.

        on_bytes: called with each part as it arrives, while it is still in the processor's cache.
        """
        if size > len(self.block):
            self.block = bytearray(size)
        block = memoryview(self.block)[:size]
        filled = min(len(self.buffer), size)
        block[:filled] = self.buffer[:filled]
        del self.buffer[:filled]
        on_bytes(block[:filled])
        while filled < size:
            self._wait()
            count = os.readv(self.reader, [block[filled:]])
            if not count:
                raise HostGone("the connection ended in the middle of a file")
            on_bytes(block[filled : filled + count])
            filled += count
        self.say_alive()
        return block

    def _wait(self) -> None:
        if not select.select([self.reader], [], [], IDLE_TIMEOUT_S)[0]:
            raise HostGone(f"the host was silent for {IDLE_TIMEOUT_S:.0f} s")
