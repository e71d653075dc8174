"""A command on the device, talked to through an SSH channel."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import paramiko

from edgeawq.deploy.ssh_errors import CONNECTION_FAILURES, explain_lost_connection
from edgeawq.deploy.ssh_packets import BatchPacketizer
from edgeawq.errors import TransferError

STDERR_TAIL_BYTES = 8192
PACKET_BYTES = 32_704  # OpenSSH takes 32 KiB in a packet, headers included
BATCH_PACKETS = 8


class SshProcess:
    """A RemoteProcess behind an open session channel."""

    def __init__(self, channel: paramiko.Channel, address: str, stall_timeout_s: float) -> None:
        self._channel = channel
        self._address = address
        self._tail = b""
        self._tail_lock = threading.Lock()
        channel.settimeout(stall_timeout_s)

    def write(self, data: bytes | memoryview) -> None:
        """Send all of `data`; the channel cuts it into packets and waits where the window is full."""
        try:
            rest = memoryview(data).cast("B")
            while rest:
                rest = rest[self._send(rest) :]
        except CONNECTION_FAILURES as error:
            self._drain_stderr()
            if self._channel.exit_status_ready() or self._tail:
                raise TransferError(f"{self._address}: the command there has ended. {self.stderr_tail()}") from error
            transport: Any = self._channel.transport
            raise explain_lost_connection(transport.saved_exception or error, self._address) from error

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
        with contextlib.suppress(*CONNECTION_FAILURES), _clear_to_send(self._channel):
            channel: Any = self._channel
            with channel.lock:
                end = None if channel.closed else channel._send_eof()
            if end is not None:
                channel.transport._send_message(end)

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

    def _send(self, data: memoryview) -> int:
        """Send the beginning of `data` and return how much of it; wait where the window is full."""
        channel: Any = self._channel  # paramiko's stubs lack much of it
        packets: BatchPacketizer = channel.transport.packetizer
        packet_bytes = min(PACKET_BYTES, channel.out_max_packet_size - 64)
        size = _take_window(channel, min(len(data), packet_bytes * BATCH_PACKETS))
        with _clear_to_send(channel):
            if channel.closed:
                raise OSError("the channel is closed")
            packets.send_channel_data(channel.remote_chanid, data[:size], packet_bytes)
        return size

    def _drain_stderr(self) -> None:
        # Not read, it would fill the channel's window and block the command.
        with self._tail_lock, contextlib.suppress(*CONNECTION_FAILURES):
            while self._channel.recv_stderr_ready():
                self._tail = (self._tail + self._channel.recv_stderr(65536))[-STDERR_TAIL_BYTES:]


def _take_window(channel: paramiko.Channel, size: int) -> int:
    """Take up to `size` bytes out of the channel's window; wait where there is no room."""
    deadline = time.monotonic() + (channel.timeout or 0.0)
    with channel.lock:
        while not channel.closed and not channel.eof_sent:
            if channel.out_window_size:
                taken = min(size, channel.out_window_size)
                channel.out_window_size -= taken
                return taken
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            channel.out_buffer_cv.wait(left)
    raise OSError("the channel is closed")


@contextlib.contextmanager
def _clear_to_send(channel: Any) -> Iterator[None]:
    """Wait for the end of a key exchange, and hold back everything else that would be sent.

    What belongs to a channel is sent in here, after a look whether it is still open: paramiko's thread answers the
    end of a command by closing the channel, and sshd ends the whole connection when anything follows that.
    """
    transport = channel.transport
    deadline = time.monotonic() + transport.clear_to_send_timeout
    while True:
        transport.clear_to_send.wait(0.1)
        if not transport.is_active():
            raise EOFError("the connection is closed")
        with transport.clear_to_send_lock:
            if transport.clear_to_send.is_set():
                yield
                return
        if time.monotonic() > deadline:
            raise TimeoutError
