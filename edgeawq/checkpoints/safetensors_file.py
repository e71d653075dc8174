"""Reading safetensors files: memory-mapped, with every number of the header checked before it is used.

Format: https://github.com/huggingface/safetensors#format — eight bytes with the header's length, the header as JSON,
then the tensors side by side without gap or overlap.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.gguf_header import U64
from edgeawq.checkpoints.mapped_file import MappedFile
from edgeawq.errors import CheckpointError, UnsupportedModelError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_DIMENSIONS = 8
METADATA_KEY = "__metadata__"
# numpy has no bfloat16: it is read as the upper 16 bits of a float32.
DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class StoredTensor:
    """One entry of the header; `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


class SafetensorsFile:
    """The tensors of one file; opening reads and checks the header only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        self.metadata: dict[str, str] = {}
        self.tensors: dict[str, StoredTensor] = {}
        self._read_header()

    def read_stored(self, name: str) -> npt.NDArray[np.generic]:
        """A read-only view in the stored type (bfloat16 as uint16); no byte is copied."""
        entry = self.tensors[name]
        dtype = DTYPES[entry.dtype]
        count = entry.n_bytes // dtype.itemsize
        return np.frombuffer(self._file.data, dtype, count, entry.offset).reshape(entry.shape)

    def read_float(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor as float32; raises UnsupportedModelError where it is stored as whole numbers or in 8 bits."""
        entry = self.tensors[name]
        if entry.dtype not in FLOAT_DTYPES:
            raise UnsupportedModelError(
                f"{self.path}: the tensor {name} is stored as {entry.dtype}; floating-point types known here are "
                f"{', '.join(FLOAT_DTYPES)}",
                remedy="use the original (float16, bfloat16 or float32) checkpoint of the model",
            )
        stored = self.read_stored(name)
        values = widen_bfloat16(stored) if entry.dtype == "BF16" else stored.astype(np.float32)
        self._file.release(entry.offset, entry.n_bytes)
        return values

    def _read_header(self) -> None:
        (length,) = self._file.unpack(U64, 0, "the header's length")
        if not isinstance(length, int) or length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{self.path} is not a safetensors file: its header would have {length:,} bytes, the format allows "
                f"{MAX_HEADER_BYTES:,}",
                remedy="if it was downloaded, check that it is not an error page or a Git LFS pointer",
            )
        raw = self._file.read(U64.size, length, "the header")
        try:
            header = json.loads(raw, object_pairs_hook=self._refuse_duplicates)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"its header is not JSON ({error})") from error
        if not isinstance(header, dict):
            raise self._damaged("its header is not a JSON object")
        metadata = header.pop(METADATA_KEY, {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self._damaged(f"{METADATA_KEY} is not a list of texts")
        self.metadata = metadata
        start = U64.size + length
        entries = [self._read_entry(name, entry, start) for name, entry in header.items()]
        self._check_layout(entries, start)
        self.tensors = {entry.name: entry for entry in entries}

    def _read_entry(self, name: str, entry: object, start: int) -> StoredTensor:
        if not isinstance(entry, dict):
            raise self._damaged(f"the entry of {name} is not an object")
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not is_count_list(shape) or len(shape) > MAX_DIMENSIONS:
            raise self._damaged(f"the shape of {name} is {shape!r}")
        if not is_count_list(offsets) or len(offsets) != 2:
            raise self._damaged(f"the offsets of {name} are {offsets!r}")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise UnsupportedModelError(
                f"{self.path}: the tensor {name} has the type {dtype!r}; known are {', '.join(DTYPES)}",
                remedy="use the original (float16, bfloat16 or float32) checkpoint of the model",
            )
        n_bytes = DTYPES[dtype].itemsize
        for size in shape:
            n_bytes *= size
        if offsets[1] - offsets[0] != n_bytes:
            raise self._damaged(
                f"{name} of shape {shape} in {dtype} takes {n_bytes:,} bytes, its offsets {offsets} say otherwise"
            )
        return StoredTensor(name, dtype, tuple(shape), start + offsets[0], n_bytes)

    def _check_layout(self, entries: list[StoredTensor], start: int) -> None:
        position = start
        for entry in sorted(entries, key=lambda entry: (entry.offset, entry.n_bytes)):
            if entry.offset != position:
                what = "overlaps the one before it" if entry.offset < position else "leaves a gap before it"
                raise self._damaged(
                    f"the tensor {entry.name} at byte {entry.offset:,} {what} (which ends at {position:,})"
                )
            position += entry.n_bytes
        self._file.require(start, position - start, "the tensors")
        if position != self._file.size:
            raise self._damaged(f"the tensors end at byte {position:,} of {self._file.size:,}")

    def _refuse_duplicates(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise self._damaged(f"{twice!r} is there twice in the header")
        return found

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged: {what}", remedy="copy or download the file again")


def widen_bfloat16(bits: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """float32 of bfloat16 values given as uint16: the lower 16 bits are zero."""
    wide = bits.astype(np.uint32)
    np.left_shift(wide, 16, out=wide)
    return wide.view(np.float32)


def is_count_list(value: object) -> TypeGuard[list[int]]:
    """Whether `value` is a list of whole numbers of at least 0."""
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 63 for item in value
    )
