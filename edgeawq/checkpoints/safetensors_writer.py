"""Writing safetensors files tensor by tensor, with the same bytes that the `safetensors` library writes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.safetensors_file import METADATA_KEY

# The format's order of types: tensors lie by descending type and then by name, so that each is aligned.
TYPE_ORDER = ("U8", "I8", "I16", "U16", "F16", "I32", "U32", "F32", "F64", "I64", "U64")
NUMPY_NAMES = {"<f2": "F16", "<f4": "F32", "<f8": "F64", "|u1": "U8", "|i1": "I8"} | {
    f"<{kind}{size}": f"{kind.upper()}{size * 8}" for kind in "iu" for size in (2, 4, 8)
}
HEADER_ALIGNMENT = 8
COPY_BYTES = 1 << 22


class SafetensorsWriter:
    """Collects tensors in a spool file, because the header, which comes first, needs all of them.

    Memory: one tensor. Disk: twice the file until `finish`. Used as a context manager; the spool is always removed.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.n_bytes = 0  # of tensors so far
        self._metadata = dict(metadata or {})
        self._entries: dict[str, tuple[str, tuple[int, ...], int, int]] = {}  # dtype, shape, spool offset, bytes
        self._spool_path = path.with_name(path.name + ".spool")
        self._spool: BinaryIO = self._spool_path.open("w+b")

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()
        self._spool_path.unlink(missing_ok=True)

    @property
    def names(self) -> list[str]:
        """The tensors added so far."""
        return list(self._entries)

    def add(self, name: str, values: npt.NDArray[np.generic]) -> None:
        """Append one tensor; a name that is there already is a ValueError (a mistake of the caller)."""
        if name in self._entries or name == METADATA_KEY:
            raise ValueError(f"the tensor {name} was added twice")
        stored = np.asarray(values, dtype=values.dtype.newbyteorder("<"), order="C")
        self._entries[name] = (NUMPY_NAMES[stored.dtype.str], stored.shape, self.n_bytes, stored.nbytes)
        self._spool.write(stored.data.cast("B") if stored.size else b"")
        self.n_bytes += stored.nbytes

    def finish(self) -> None:
        """Write the file and see it safely on the disk."""
        order = sorted(self._entries, key=lambda name: (-TYPE_ORDER.index(self._entries[name][0]), name.encode()))
        with self.path.open("wb") as file:
            file.write(self._describe(order))
            for name in order:
                _, _, offset, n_bytes = self._entries[name]
                self._spool.seek(offset)
                copy_bytes(self._spool, file, n_bytes)
            file.flush()
            os.fsync(file.fileno())

    def _describe(self, order: list[str]) -> bytes:
        header: dict[str, object] = {METADATA_KEY: self._metadata} if self._metadata else {}
        position = 0
        for name in order:
            dtype, shape, _, n_bytes = self._entries[name]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + n_bytes]}
            position += n_bytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % HEADER_ALIGNMENT)
        return len(text).to_bytes(8, "little") + text


def copy_bytes(source: BinaryIO, target: BinaryIO, n_bytes: int) -> None:
    """Copy the next `n_bytes` of one open file to another."""
    while n_bytes > 0:
        piece = source.read(min(COPY_BYTES, n_bytes))
        if not piece:
            raise EOFError(f"the spool file ends {n_bytes} bytes early")
        target.write(piece)
        n_bytes -= len(piece)
