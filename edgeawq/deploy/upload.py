"""Sending content to the device: over one or several channels, compressed where that is quicker, within a rate."""

from __future__ import annotations

import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from edgeawq.deploy.receiver_client import Link, Missing, ReceiverClient, encode
from edgeawq.deploy.release import Release
from edgeawq.errors import BundleError, EdgeawqError

MAX_CHANNELS = 4
CHANNEL_ROUND_TRIP_S = 0.02  # one more channel for each such time: a channel has 2 MiB on the way, no more
MORE_CHANNELS_FROM_BYTES = 16 << 20  # starting a channel takes a process on the device
WRITE_BYTES = 8 * 32_704  # whole SSH packets (ssh_process.py): a rest would travel in one of its own
# zlib's fastest level packs about this much a second on one core, so a quicker link is better off without.
COMPRESS_BELOW_BYTES_PER_S = 40e6
MEASURE_AFTER_BYTES = 8 << 20  # what lies in buffers on the way must not pass for speed
WORTH_IT = 0.85  # of a chunk's size
SAMPLE_BYTES = 64 << 10

Compression = Literal["auto", "never", "always"]


class Limiter(Protocol):
    """Something that lets a number of bytes through, when it is their time."""

    def acquire(self, n_bytes: int) -> None:
        """Return when `n_bytes` may be sent."""


@dataclass
class Sent:
    """What an upload has sent: content, and what of it went over the wire."""

    files: int = 0
    content_bytes: int = 0
    wire_bytes: int = 0
    seconds: float = 0.0
    channels: int = 1


@dataclass(frozen=True)
class UploadOptions:
    """How to send. channels 0: as many as the distance asks for."""

    channels: int = 0
    compression: Compression = "auto"
    limiter: Limiter | None = None


def choose_channels(round_trip_s: float, upload_bytes: int) -> int:
    """Return how many channels an upload is worth: two nearby, up to MAX_CHANNELS far away, one for little.

    Nearby the second one keeps the line busy while the device hashes and writes what came over the first.
    """
    if upload_bytes < MORE_CHANNELS_FROM_BYTES:
        return 1
    return max(2, min(MAX_CHANNELS, 1 + int(round_trip_s / CHANNEL_ROUND_TRIP_S + 0.5)))


def upload(
    client: ReceiverClient,
    release: Release,
    missing: Sequence[Missing],
    options: UploadOptions,
    on_progress: Callable[[int], None],
) -> Sent:
    """Send `missing`; return when all of it is stored and durable on the device.

    on_progress: called with the number of content bytes just sent, from any thread.
    """
    started = time.monotonic()
    work = _Work(release, missing, options, on_progress)
    wanted = options.channels or choose_channels(client.measure_round_trip_s(), work.upload_bytes)
    more = min(wanted, len(work.pieces)) - 1
    threads: list[threading.Thread] = []
    if more > 0:
        join = client.invite()
        threads = [threading.Thread(target=work.run, args=(join,), daemon=True) for _ in range(more)]
    for thread in threads:
        thread.start()
    try:
        work.send(client.link)
        for thread in threads:
            thread.join()
    except BaseException as error:
        first = work.failures[0] if work.failures else None  # looked at now: the others fail when they are cut
        work.stop()
        work.end_links(cut=True)
        if isinstance(error, EdgeawqError) and first is not None:
            raise first from error
        raise
    work.end_links(cut=False)
    if work.failures:
        raise work.failures[0]
    client.call("flush")
    work.sent.seconds = time.monotonic() - started
    return work.sent


@dataclass(frozen=True)
class _Piece:
    file: int
    chunk: int
    offset: int
    length: int


class _Work:
    """The pieces that are still to be sent, for all channels."""

    def __init__(
        self,
        release: Release,
        missing: Sequence[Missing],
        options: UploadOptions,
        on_progress: Callable[[int], None],
    ) -> None:
        self.release = release
        self.options = options
        self.on_progress = on_progress
        self.pieces = deque(list_pieces(release, missing))
        self.upload_bytes = sum(piece.length for piece in self.pieces)
        self.lock = threading.Lock()
        self.failures: list[BaseException] = []
        self.links: list[Link] = []  # the further channels
        self.ended = False
        self.sent = Sent(files=len({piece.file for piece in self.pieces}))
        self.started = time.monotonic()

    def run(self, join: Callable[[], Link | None]) -> None:
        """Open one more channel and send until nothing is left; what goes wrong stops the other channels too."""
        try:
            link = join()
            if link is None or not self.keep_link(link):
                return
            self.send(link)
            link.call("flush")
        except BaseException as error:  # handed to the thread that called upload()
            with self.lock:
                self.failures.append(error)
            self.stop()

    def keep_link(self, link: Link) -> bool:
        """Note a further channel, to be ended with the upload; False when that has happened already."""
        with self.lock:
            if not self.ended:
                self.links.append(link)
                self.sent.channels += 1
                return True
        link.process.terminate()
        return False

    def end_links(self, *, cut: bool) -> None:
        """Close the further channels. cut: at once, whatever they are doing."""
        with self.lock:
            self.ended = True
        for link in self.links:
            if not cut:
                link.process.close_input()
            link.process.terminate()

    def stop(self) -> None:
        """Leave nothing to send."""
        with self.lock:
            self.pieces.clear()

    def take(self) -> _Piece | None:
        with self.lock:
            return self.pieces.popleft() if self.pieces else None

    def send(self, link: Link) -> None:
        """Send pieces over one channel until none is left; small ones are collected so that they share packets."""
        pending = bytearray()
        while (piece := self.take()) is not None:
            block = self.read(piece)
            packed = self.compress(block)
            data = memoryview(packed or block)
            header = {"op": "put", "file": piece.file, "chunk": piece.chunk, "length": len(data)}
            pending += encode({**header, "encoding": "zlib"} if packed else header)
            start = counted = 0
            while len(pending) + len(data) - start >= WRITE_BYTES:
                part = data[start : start + max(0, WRITE_BYTES - len(pending))]
                start += len(part)
                if pending:
                    pending += part
                    self.write(link, memoryview(pending)[:WRITE_BYTES])
                    pending = pending[WRITE_BYTES:]
                else:
                    self.write(link, part)
                done = len(block) * start // max(1, len(data))  # an empty file, too, may complete a packet
                self.count(done - counted)
                counted = done
            pending += data[start:]
            self.count(len(block) - counted)
        self.write(link, memoryview(pending))

    def write(self, link: Link, data: memoryview) -> None:
        if not data:
            return
        if self.options.limiter is not None:
            self.options.limiter.acquire(len(data))
        link.write(data)
        with self.lock:
            self.sent.wire_bytes += len(data)

    def count(self, n_bytes: int) -> None:
        with self.lock:
            self.sent.content_bytes += n_bytes
            self.on_progress(n_bytes)

    def read(self, piece: _Piece) -> bytes:
        source = self.release.files[piece.file].source
        try:
            with source.open("rb", buffering=0) as stream:
                stream.seek(piece.offset)
                block = stream.read(piece.length)
        except OSError as error:
            raise BundleError(f"{source} cannot be read: {error.strerror}", remedy="push again") from error
        if len(block) != piece.length:
            raise BundleError(f"{source} became shorter while it was sent", remedy="push again")
        return block

    def compress(self, block: bytes) -> bytes | None:
        """Return `block` compressed where that saves time, else None."""
        if self.options.compression == "never" or len(block) < 512:
            return None
        if self.options.compression == "auto" and not self.is_slow():
            return None
        if len(block) > 2 * SAMPLE_BYTES:
            middle = len(block) // 2
            sample = block[middle : middle + SAMPLE_BYTES]
            if len(zlib.compress(sample, 1)) > WORTH_IT * len(sample):
                return None
        packed = zlib.compress(block, 1)
        return packed if len(packed) <= WORTH_IT * len(block) else None

    def is_slow(self) -> bool:
        """True when the link was found to be slower than the compressor."""
        wire = self.sent.wire_bytes
        return wire >= MEASURE_AFTER_BYTES and wire < COMPRESS_BELOW_BYTES_PER_S * (time.monotonic() - self.started)


def list_pieces(release: Release, missing: Sequence[Missing]) -> list[_Piece]:
    """Return what is to be sent, small files first: what can go wrong shows early, and the long part is steady."""
    pieces = []
    for entry in missing:
        lengths = [length for length, _ in release.files[entry.file].chunks]
        offset = sum(lengths[: entry.first])
        for chunk in range(entry.first, entry.first + entry.count):
            pieces.append(_Piece(entry.file, chunk, offset, lengths[chunk]))
            offset += lengths[chunk]
    sizes = {entry.file: release.files[entry.file].size for entry in missing}
    return sorted(pieces, key=lambda piece: (sizes[piece.file], piece.file, piece.chunk))
