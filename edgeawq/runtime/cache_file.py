"""A saved KV cache: one binary file with the tokens it stands for and, for a conversation, its messages.

    bytes 0 …     magic, 8 bytes
    8 …           format version, uint32; length of the header, uint32
    16 …          header, JSON
    then          per layer: keys, then values, [kv heads, tokens, head_dim], little-endian elements as the header says;
                  after each row of int8 elements its scale, float32
    last 32       SHA-256 of everything before

The order of the elements does not depend on the instruction set, so a file fits every device that has the same bundle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgeawq.errors import UsageError
from edgeawq.runtime.whole_file import describe_os_error, write_whole

if TYPE_CHECKING:
    from edgeawq.runtime.generate import DecoderLike

MAGIC = b"EDGEAWQ\x01"
FORMAT_VERSION = 1
MAX_HEADER_BYTES = 64 << 20
MAX_TOKENS = 1 << 22
_DIGEST_BYTES = 32
_CHUNK = 1 << 20
_ELEMENTS = {"i8": "<i1", "f16": "<f2", "f32": "<f4"}


@dataclass(frozen=True)
class CacheLayout:
    """What a KV cache holds for one token: keys and values of every layer and KV head."""

    element: str  # "i8", "f16" or "f32"
    n_layers: int
    n_kv_heads: int
    head_dim: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element as it lies in a file."""
        return np.dtype(_ELEMENTS[self.element])

    @property
    def row_elements(self) -> int:
        """Elements of one key or value: its features, and for int8 the four bytes of its float32 scale."""
        return self.head_dim + (4 if self.element == "i8" else 0)

    @property
    def layer_bytes_per_token(self) -> int:
        """Bytes of one token in one layer."""
        return 2 * self.n_kv_heads * self.row_elements * self.dtype.itemsize


@dataclass(frozen=True)
class CacheHeader:
    """The header of a saved cache; `extra` is the caller's (JSON values)."""

    bundle: str  # SHA-256 of the bundle's manifest, lower-case hex
    layout: CacheLayout
    tokens: tuple[int, ...]
    extra: dict[str, Any]


def write_cache(
    path: Path, decoder: DecoderLike, *, bundle: str, tokens: Sequence[int], extra: dict[str, Any] | None = None
) -> None:
    """Save what the decoder's cache holds for `tokens`, which are its first ones. UsageError when it cannot be."""
    layout = decoder.cache_layout
    document = {"bundle": bundle, "layout": asdict(layout), "tokens": list(tokens), "extra": extra or {}}
    # text typed at a terminal may hold bytes that are no Unicode
    header = json.dumps(document, ensure_ascii=False).encode("utf-8", errors="replace")

    def write(file: BinaryIO) -> None:
        digest = hashlib.sha256()

        def put(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        put(MAGIC + FORMAT_VERSION.to_bytes(4, "little") + len(header).to_bytes(4, "little"))
        put(header)
        for layer in range(layout.n_layers):
            put(decoder.export_layer(layer, len(tokens)).astype(layout.dtype, copy=False).tobytes())
        file.write(digest.digest())

    write_whole(path.expanduser(), write)


def is_cache_file(path: Path) -> bool:
    """Whether the file begins as a saved cache does; False when there is none."""
    try:
        with path.expanduser().open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def read_header(path: Path) -> CacheHeader:
    """Read the header and check the whole file: format, sizes, checksum. UsageError when anything is wrong."""
    with _open(path) as file:
        header, start = _read_header(path, file)
        n_rest = header.layout.n_layers * header.layout.layer_bytes_per_token * len(header.tokens)
        size = os.fstat(file.fileno()).st_size
        if size != start + n_rest + _DIGEST_BYTES:
            raise _refuse(path, f"has {size} bytes, its header says {start + n_rest + _DIGEST_BYTES}")
        file.seek(0)
        digest = hashlib.sha256()
        n_left = size - _DIGEST_BYTES
        while n_left:
            chunk = file.read(min(_CHUNK, n_left))
            if not chunk:
                raise _refuse(path, "became shorter while it was read")
            digest.update(chunk)
            n_left -= len(chunk)
        if file.read(_DIGEST_BYTES + 1) != digest.digest():
            raise _refuse(path, "is damaged: its checksum is wrong")
    return header


def find_mismatch(header: CacheHeader, decoder: DecoderLike, *, bundle: str, vocab_size: int) -> str:
    """Why this decoder cannot use the cache, as half a sentence; "" when it can."""
    if header.bundle != bundle:
        return "it was made with another bundle"
    if header.layout != decoder.cache_layout:
        return f"it holds {header.layout.element} elements, this model's cache {decoder.cache_layout.element}"
    if len(header.tokens) > decoder.context_length:
        return f"it holds {len(header.tokens)} tokens, the context has room for {decoder.context_length}"
    if header.tokens and max(header.tokens) >= vocab_size:
        return "it has tokens that this model does not know"
    return ""


def load_cache(path: Path, header: CacheHeader, decoder: DecoderLike) -> None:
    """Fill the decoder's cache from a file that `read_header` and `find_mismatch` have found good."""
    layout, count = header.layout, len(header.tokens)

    def read_layers(file: BinaryIO) -> Iterator[npt.NDArray[Any]]:
        for _ in range(layout.n_layers):
            data = file.read(layout.layer_bytes_per_token * count)
            if len(data) != layout.layer_bytes_per_token * count:
                raise _refuse(path, "became shorter while it was read")
            elements = np.frombuffer(data, layout.dtype)
            yield elements.reshape(2, layout.n_kv_heads, count, layout.row_elements)

    with _open(path) as file:
        again, start = _read_header(path, file)
        if again != header:
            raise _refuse(path, "changed while it was read")
        file.seek(start)
        decoder.import_layers(count, read_layers(file))


def _open(path: Path) -> BinaryIO:
    path = path.expanduser()
    try:
        if not path.is_file():
            raise UsageError(f"there is no file {path}", remedy="give a file that /save has written")
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {describe_os_error(error)}", remedy="give another file name") from error


def _read_header(path: Path, file: BinaryIO) -> tuple[CacheHeader, int]:
    """The header, every field checked, and the offset behind it."""
    start = file.read(16)
    if start[:8] != MAGIC or len(start) < 16:
        raise _refuse(path, "is no saved session")
    version, length = int.from_bytes(start[8:12], "little"), int.from_bytes(start[12:], "little")
    if version != FORMAT_VERSION:
        raise _refuse(path, f"has format version {version}, known is {FORMAT_VERSION}")
    if length > MAX_HEADER_BYTES:
        raise _refuse(path, f"has a header of {length} bytes, the limit is {MAX_HEADER_BYTES}")
    data = file.read(length)
    try:
        document = json.loads(data)
        layout = CacheLayout(**document["layout"])
        header = CacheHeader(document["bundle"], layout, tuple(document["tokens"]), document["extra"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _refuse(path, f"has a header that cannot be read ({type(error).__name__})") from None
    sizes = (layout.n_layers, layout.n_kv_heads, layout.head_dim)
    if not isinstance(layout.element, str) or layout.element not in _ELEMENTS:
        raise _refuse(path, "has a cache of unknown elements")
    if not all(type(size) is int and 0 < size <= 1 << 16 for size in sizes):
        raise _refuse(path, "has a cache of impossible size")
    if not isinstance(header.bundle, str) or not isinstance(header.extra, dict) or len(header.tokens) > MAX_TOKENS:
        raise _refuse(path, "has a header with fields of the wrong kind")
    if not all(type(token) is int and 0 <= token < 1 << 31 for token in header.tokens):
        raise _refuse(path, "has tokens that are no token ids")
    return header, 16 + length


def _refuse(path: Path, what: str) -> UsageError:
    return UsageError(f"{path} {what}", remedy="give a file that /save or --session has written")
