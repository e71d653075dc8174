"""A connection through a command: ProxyCommand of ssh_config(5)."""

from __future__ import annotations

import socket
import subprocess
import threading

ERROR_TAIL_BYTES = 2000


class ProxyCommandSocket(socket.socket):
    """A socket whose other end is the standard input and output of a shell command."""

    def __init__(self, command: str) -> None:
        near, far = socket.socketpair()
        super().__init__(fileno=near.detach())
        with far:
            self._child = subprocess.Popen(
                # As ssh does it; but Ctrl-C in this terminal is for us, and we end the command in our own way.
                ["/bin/sh", "-c", f"trap '' INT; exec {command}"],
                stdin=far.fileno(),
                stdout=far.fileno(),
                stderr=subprocess.PIPE,
            )
        self._tail = b""
        self._drain = threading.Thread(target=self._drain_errors, daemon=True)
        self._drain.start()

    def read_errors(self) -> str:
        """Return the end of what the command wrote to standard error, in particular once it has ended."""
        self._drain.join(1.0)
        return self._tail.decode("utf-8", "replace").strip()

    def close(self) -> None:
        """Close the connection; a command that does not end then is ended."""
        super().close()
        try:
            self._child.wait(1.0)
        except subprocess.TimeoutExpired:
            self._child.terminate()
            try:
                self._child.wait(2.0)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._drain.join(1.0)

    def _drain_errors(self) -> None:
        assert self._child.stderr
        with self._child.stderr as stream:
            while block := stream.read1(4096):  # type: ignore[attr-defined]  # it is a BufferedReader
                self._tail = (self._tail + block)[-ERROR_TAIL_BYTES:]
