"""A child process of this machine that is talked to through pipes, with timeouts in both directions."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import IO

from edgeawq.deploy.transport import STALL_TIMEOUT_S
from edgeawq.errors import TransferError

STDERR_TAIL_BYTES = 8192


class PipeProcess:
    """A RemoteProcess that runs here, in a process group of its own."""

    def __init__(self, arguments: Sequence[str], *, stall_timeout_s: float = STALL_TIMEOUT_S) -> None:
        self._child = subprocess.Popen(
            list(arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C in the terminal is for us; we then end the child in our own way
        )
        assert self._child.stdin and self._child.stdout and self._child.stderr
        self._stdin, self._stdout, self._stderr = self._child.stdin, self._child.stdout, self._child.stderr
        # Not blocking, and used under a lock: one thread may terminate while others read and write, and a number of
        # a closed file must never be used, as it may mean another file by then.
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        self._lock = threading.Lock()
        self._stall_timeout_s = stall_timeout_s
        self._tail = b""
        self._terminated = threading.Event()
        self._drain = threading.Thread(target=self._drain_stderr, daemon=True)
        self._drain.start()

    def write(self, data: bytes | memoryview) -> None:
        """Send all of `data`. TransferError when the child is gone, or takes nothing for the stall timeout."""
        rest = memoryview(data)
        deadline = time.monotonic() + self._stall_timeout_s
        while rest:
            written = self._try_write(rest)
            if written:
                rest = rest[written:]
                deadline = time.monotonic() + self._stall_timeout_s
            elif time.monotonic() > deadline:
                raise TransferError(f"nothing could be sent for {self._stall_timeout_s:.0f} s")
            else:
                self._wait_for(self._stdin, select.POLLOUT)

    def read(self, size: int) -> bytes:
        """Return 1 to `size` bytes; b"" at the end. TransferError after a silence of the stall timeout."""
        deadline = time.monotonic() + self._stall_timeout_s
        while True:
            with self._lock:
                if self._stdout.closed:
                    return b""
                with contextlib.suppress(BlockingIOError):
                    return os.read(self._stdout.fileno(), size)
            if time.monotonic() > deadline:
                raise TransferError(f"the other side was silent for {self._stall_timeout_s:.0f} s")
            self._wait_for(self._stdout, select.POLLIN)

    def close_input(self) -> None:
        """Close the child's standard input."""
        with self._lock, contextlib.suppress(OSError):
            self._stdin.close()

    def _try_write(self, data: memoryview) -> int:
        with self._lock:
            if self._stdin.closed:
                raise TransferError("the connection was closed")
            try:
                return os.write(self._stdin.fileno(), data)
            except BlockingIOError:
                return 0
            except OSError as error:
                raise TransferError(f"the command there has ended ({error.strerror}). {self.stderr_tail()}") from error

    def _wait_for(self, pipe: IO[bytes], event: int) -> None:
        # Closed by another thread meanwhile: the next attempt notices it.
        with contextlib.suppress(ValueError, OSError):
            poll = select.poll()
            poll.register(pipe, event)
            poll.poll(500)

    def wait(self) -> int:
        """Wait for the child's end, for at most the stall timeout."""
        self.close_input()
        try:
            code = self._child.wait(self._stall_timeout_s)
        except subprocess.TimeoutExpired:
            self.terminate()
            code = -1
        self._drain.join(2.0)
        self._close_output()
        return code

    def stderr_tail(self) -> str:
        """Return the end of what the child wrote to standard error."""
        self._drain.join(0.2)
        return self._tail.decode("utf-8", "replace").strip()

    def terminate(self) -> None:
        """End the child: its input closes, and after two seconds it is killed."""
        if self._terminated.is_set():
            return
        self._terminated.set()
        self.close_input()
        try:
            self._child.wait(2.0)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        self._drain.join(2.0)
        self._close_output()

    def _close_output(self) -> None:
        with self._lock:
            self._stdout.close()

    def _drain_stderr(self) -> None:
        with self._stderr:
            while block := self._stderr.read(4096):
                self._tail = (self._tail + block)[-STDERR_TAIL_BYTES:]
