"""A read-only memory map whose every read is checked against the end of the file."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

from edgeawq.errors import CheckpointError


class MappedFile:
    """The bytes of one file, mapped and not copied; `path` is for messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                # Python refuses to map an empty file.
                self.data: mmap.mmap | bytes = (
                    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
                )
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read: {error.strerror or error}",
                remedy="check the path and its permissions",
            ) from error

    def require(self, offset: int, n_bytes: int, what: str) -> None:
        """Raise CheckpointError unless bytes offset … offset + n_bytes lie inside the file."""
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self.size:
            raise CheckpointError(
                f"{self.path} is truncated or damaged: {what} needs bytes {offset:,} to {offset + n_bytes:,}, "
                f"but the file has {self.size:,} bytes",
                remedy="copy or download the file again and compare its size with the source's",
            )

    def read(self, offset: int, n_bytes: int, what: str) -> bytes:
        """A copy of a piece of the file."""
        self.require(offset, n_bytes, what)
        return self.data[offset : offset + n_bytes]

    def release(self, offset: int, n_bytes: int) -> None:
        """Give back the memory of whole pages of a piece that was copied; reading it again takes it from the file.

        Pages that were read count as this process's memory as long as they are mapped: without this a run through a
        model ends with as much resident memory as the model has bytes.
        """
        if not isinstance(self.data, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (offset + n_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < end:
            self.data.madvise(mmap.MADV_DONTNEED, first, end - first)

    def unpack(self, layout: struct.Struct, offset: int, what: str) -> tuple[int | float | bool, ...]:
        """Numbers at `offset`."""
        self.require(offset, layout.size, what)
        return layout.unpack_from(self.data, offset)
