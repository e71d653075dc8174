"""Many packets of channel data in one go: what paramiko does packet by packet costs more than the encryption.

Only AES-GCM connections are batched. Everything else, the handshake and the renewal of keys included, stays with
paramiko's own Packetizer. A packet is (RFC 4253 section 6, RFC 5647 section 7.3):

    uint32 length | byte padding_length | payload | padding | 16-byte tag
                  └──────────── encrypted ─────────┘

with `length` authenticated, not encrypted, and a 12-byte nonce: 4 fixed bytes and a counter of packets.
"""

from __future__ import annotations

import errno
import math
import os
import select
import struct
import threading
import time
from typing import Any

import paramiko
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from paramiko.packet import NeedRekeyException, Packetizer

TAG_BYTES = 16
BLOCK_BYTES = 16
READ_BYTES = 65536
MIN_PADDING = 4
MSG_CHANNEL_DATA = 94
MSG_GLOBAL_REQUEST = 80
# length, padding_length, message number, channel, length of the data
_HEADER = struct.Struct(">IBBII")
_LENGTH_BYTES = 4
# Room that a packet needs beside its data, at most.
PACKET_OVERHEAD_BYTES = _HEADER.size + MIN_PADDING + BLOCK_BYTES + TAG_BYTES


class PacketSealer:
    """AES-GCM towards the peer with its own nonce counter, so that paramiko's packets and batched ones share it."""

    def __init__(self, engine: AESGCM, nonce: bytes) -> None:
        self._engine = engine
        self._fixed = nonce[:4]
        self._counter = int.from_bytes(nonce[4:], "big")

    def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
        """Seal one packet, as paramiko calls it; its own idea of the nonce counts only its own packets."""
        return self._engine.encrypt(self._next_nonce(), data, associated)

    def seal(self, plain: memoryview, packet: memoryview) -> None:
        """Encrypt `plain` and its tag into `packet`, whose first 4 bytes are the length, written already."""
        self._engine.encrypt_into(self._next_nonce(), plain, packet[:_LENGTH_BYTES], packet[_LENGTH_BYTES:])

    def _next_nonce(self) -> bytes:
        nonce = self._fixed + (self._counter & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "big")
        self._counter += 1
        return nonce


class BatchPacketizer(Packetizer):
    """paramiko's Packetizer, with `send_channel_data` beside it."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._sealer: PacketSealer | None = None
        self._compresses = False
        self._batched_bytes = 0
        # Outside of paramiko's own lock: a nonce must reach the wire in the order in which it was taken.
        self._order = threading.RLock()
        self._stream = stream
        self._arrived = bytearray()
        self._out = memoryview(bytearray())
        self._dead_after_s = math.inf
        self._last_arrival = time.monotonic()

    @property
    def can_batch(self) -> bool:
        """True when the cipher towards the peer is AES-GCM and nothing is compressed."""
        return self._sealer is not None and not self._compresses

    def watch_peer(self, dead_after_s: float) -> None:
        """From now on, end the connection when nothing has come for that long."""
        self._last_arrival = time.monotonic()
        self._dead_after_s = dead_after_s

    def set_outbound_cipher(self, block_engine: Any, *arguments: Any, **options: Any) -> None:
        """Take the new keys: called by paramiko after every key exchange."""
        with self._order:
            self._sealer = None
            self._batched_bytes = 0
            if options.get("aead") and hasattr(block_engine, "encrypt_into"):
                self._sealer = block_engine = PacketSealer(block_engine, options["iv_out"])
            super().set_outbound_cipher(block_engine, *arguments, **options)

    def set_outbound_compressor(self, compressor: Any) -> None:
        """Compress from now on: called by paramiko."""
        self._compresses = True
        super().set_outbound_compressor(compressor)

    def send_message(self, data: Any) -> None:
        """Send one message: called by paramiko."""
        with self._order:
            super().send_message(data)

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        """Return the next `n` bytes of the connection: called by paramiko, twice for every small message.

        Reads what is there in one system call: sshd sends a message for every 96 KiB that it has taken.
        """
        base: Any = self  # its protected names are not in the stubs
        if not base._initial_kex_done:
            handshake: bytes = super().read_all(n, check_rekey)
            return handshake
        while len(self._arrived) < n:
            try:
                block = self._stream.recv(READ_BYTES)
            except (TimeoutError, BlockingIOError):  # paramiko's sockets have a timeout of 0.1 s for this
                if self.closed:
                    raise EOFError from None
                if check_rekey and not self._arrived and self.need_rekey():
                    raise NeedRekeyException from None
                if time.monotonic() - self._last_arrival > self._dead_after_s:
                    raise OSError(errno.ETIMEDOUT, f"no answer for {self._dead_after_s:.0f} s") from None
                base._check_keepalive()
                continue
            except OSError:
                if self.closed:
                    raise EOFError from None
                raise
            if not block:
                raise EOFError
            self._arrived += block
            self._last_arrival = time.monotonic()
        taken = bytes(self._arrived[:n])
        del self._arrived[:n]
        return taken

    def send_channel_data(self, channel: int, data: memoryview, packet_bytes: int) -> None:
        """Send `data` to the peer's `channel` in packets with `packet_bytes` of it each: sealed, in one system call.

        The caller has taken the room out of the channel's window, and no key exchange is going on.
        """
        with self._order:
            sealer = self._sealer
            if sealer is None or self._compresses:
                for start in range(0, len(data), packet_bytes):
                    message = paramiko.Message()
                    message.add_byte(bytes([MSG_CHANNEL_DATA]))
                    message.add_int(channel)
                    message.add_string(bytes(data[start : start + packet_bytes]))
                    super().send_message(message)
                return
            n_packets = -(-len(data) // packet_bytes)
            need = len(data) + n_packets * PACKET_OVERHEAD_BYTES
            if len(self._out) < need:  # kept: fresh memory would be zeroed by the kernel again for every batch
                self._out = memoryview(bytearray(need))
            out = self._out
            plain = memoryview(bytearray(min(packet_bytes, len(data)) + PACKET_OVERHEAD_BYTES))
            padding_source = os.urandom(MIN_PADDING + BLOCK_BYTES)
            end = 0
            for start in range(0, len(data), packet_bytes):
                block = data[start : start + packet_bytes]
                end += seal_data(sealer, channel, block, padding_source, plain, out[end:])
            self.write_all(out[:end])
            self._batched_bytes += end
            if self._batched_bytes >= self.REKEY_BYTES and not self.need_rekey():
                base: Any = self
                base._trigger_rekey()


class BatchTransport(paramiko.Transport):
    """paramiko's Transport with a BatchPacketizer, and without its deadlock while keys are renewed.

    The thread that reads answers the end of a channel. paramiko lets it wait for the end of the key exchange, which
    only this very thread can bring about: with several channels, one that ends at that moment stopped all of them.
    """

    def __init__(self, stream: Any) -> None:
        options: dict[str, Any] = {"packetizer_class": BatchPacketizer}  # not in the stubs
        super().__init__(stream, **options)
        self._deferred: list[Any] = []

    def watch_peer(self, dead_after_s: float) -> None:
        """Ask for a sign of life when it is quiet, and end the connection when none has come for that long.

        TCP alone notices that a machine has gone only while data is under way to it, and never when a proxy or a
        jump host goes on taking the data.
        """
        packets: Any = self.packetizer
        packets.watch_peer(dead_after_s)
        packets.set_keepalive(dead_after_s / 4, self._ask_for_sign_of_life)

    def _ask_for_sign_of_life(self) -> None:
        # In the thread that reads, which must not be held up: somebody who sends at this moment, or a socket that
        # takes nothing, is left alone, and the silence counts on.
        if not self.clear_to_send_lock.acquire(blocking=False):
            return
        try:
            if self.clear_to_send.is_set() and _takes_data(self.sock):
                request = paramiko.Message()
                request.add_byte(bytes([MSG_GLOBAL_REQUEST]))
                request.add_string("keepalive@openssh.com")
                request.add_boolean(True)  # sshd answers that it does not know this request: that is the sign
                self._send_message(request)  # type: ignore[attr-defined]  # not in the stubs
        finally:
            self.clear_to_send_lock.release()

    def _send_user_message(self, data: Any) -> None:
        if threading.current_thread() is self and not self.clear_to_send.is_set():
            self._deferred.append(data)
            return
        super()._send_user_message(data)  # type: ignore[misc]  # not in the stubs, as below

    def _parse_newkeys(self, m: Any) -> None:
        super()._parse_newkeys(m)  # type: ignore[misc]
        deferred, self._deferred = self._deferred, []
        for data in deferred:
            super()._send_user_message(data)  # type: ignore[misc]  # not in the stubs, as below


def _takes_data(stream: Any) -> bool:
    if hasattr(stream, "send_ready"):  # a channel of the connection to a jump host
        return bool(stream.send_ready())
    return bool(select.select([], [stream], [], 0)[1])


def seal_data(
    sealer: PacketSealer, channel: int, block: memoryview, padding: bytes, plain: memoryview, out: memoryview
) -> int:
    """Write one packet of channel data into `out`; return its size. `plain` is scratch memory."""
    body = _HEADER.size - _LENGTH_BYTES + len(block)
    n_padding = MIN_PADDING + -(body + MIN_PADDING) % BLOCK_BYTES
    length = body + n_padding
    _HEADER.pack_into(plain, 0, length, n_padding, MSG_CHANNEL_DATA, channel, len(block))
    plain[_HEADER.size : _HEADER.size + len(block)] = block
    plain[_LENGTH_BYTES + body : _LENGTH_BYTES + length] = padding[:n_padding]
    out[:_LENGTH_BYTES] = plain[:_LENGTH_BYTES]
    size = _LENGTH_BYTES + length + TAG_BYTES
    sealer.seal(plain[_LENGTH_BYTES : _LENGTH_BYTES + length], out[:size])
    return size
