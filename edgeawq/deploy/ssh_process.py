"""A command on the device, talked to through an SSH channel."""

from __future__ import annotations

import contextlib

import paramiko

from edgeawq.deploy.ssh_errors import CONNECTION_FAILURES, explain_lost_connection
from edgeawq.errors import TransferError

STDERR_TAIL_BYTES = 8192
PACKET_BYTES = 32_704  # OpenSSH takes 32 KiB in a packet, headers included


class SshProcess:
    """A RemoteProcess behind an open session channel."""

    def __init__(self, channel: paramiko.Channel, address: str, stall_timeout_s: float) -> None:
        self._channel = channel
        self._address = address
        self._tail = b""
        channel.settimeout(stall_timeout_s)

    def write(self, data: bytes | memoryview) -> None:
        """Send all of `data`; the channel cuts it into packets and waits where the window is full."""
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._channel.send(bytes(rest[:PACKET_BYTES])) :]
        except CONNECTION_FAILURES as error:
            self._drain_stderr()
            if self._channel.exit_status_ready() or self._tail:
                raise TransferError(f"{self._address}: the command there has ended. {self.stderr_tail()}") from error
            raise explain_lost_connection(error, self._address) from error

    def read(self, size: int) -> bytes:
        """Return 1 to `size` bytes; b"" at the end. TransferError after a silence of the stall timeout."""
        try:
            block: bytes = self._channel.recv(size)
        except CONNECTION_FAILURES as error:
            raise explain_lost_connection(error, self._address) from error
        self._drain_stderr()
        return block

    def close_input(self) -> None:
        """Send the end of the input."""
        with contextlib.suppress(*CONNECTION_FAILURES):
            self._channel.shutdown_write()

    def wait(self) -> int:
        """Return the exit code; -1 when the connection ended before it was told."""
        if not self._channel.status_event.wait(self._channel.gettimeout()):
            self.terminate()
            return -1
        code = int(self._channel.recv_exit_status())
        self._drain_stderr()
        self._channel.close()
        return code

    def stderr_tail(self) -> str:
        """Return the end of what the command wrote to standard error."""
        self._drain_stderr()
        return self._tail.decode("utf-8", "replace").strip()

    def terminate(self) -> None:
        """Close the channel; sshd closes the command's pipes."""
        with contextlib.suppress(*CONNECTION_FAILURES):
            self._channel.close()

    def _drain_stderr(self) -> None:
        # Not read, it would fill the channel's window and block the command.
        with contextlib.suppress(*CONNECTION_FAILURES):
            while self._channel.recv_stderr_ready():
                self._tail = (self._tail + self._channel.recv_stderr(65536))[-STDERR_TAIL_BYTES:]
