"""Cutting large files into chunks: what two releases have in common is then sent and stored as seldom as possible."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgeawq.deploy.cache import cache_folder
from edgeawq.deploy.receiver.limits import HASH, MAX_CHUNK_BYTES
from edgeawq.errors import BundleError
from packager.manifest import TensorEntry

CHUNK_BYTES = 4 << 20
KEPT_LISTS = 200

Chunks = tuple[tuple[int, str], ...]  # (length in bytes, SHA-256 in hexadecimal), in order


def cut_evenly(size: int) -> list[int]:
    """Return the lengths of `size` bytes' chunks; one chunk for a small file, an empty one too."""
    if size <= CHUNK_BYTES:
        return [size]
    return [min(CHUNK_BYTES, size - start) for start in range(0, size, CHUNK_BYTES)]


def cut_at_tensors(size: int, tensors: Iterable[TensorEntry]) -> list[int]:
    """Return chunk lengths for a weights file, such that a layer, or a large tensor, shares no chunk with others.

    Within a layer small tensors share chunks. Other weights in a layer then change that layer's chunks and no more.
    """
    if size <= CHUNK_BYTES:
        return [size]
    bounds = {0, size}
    before = ""
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        layer = ".".join(tensor.name.split(".")[:2]) if tensor.name.startswith("layers.") else tensor.name
        if layer != before or tensor.nbytes >= CHUNK_BYTES:
            bounds.add(min(tensor.offset, size))
        if tensor.nbytes >= CHUNK_BYTES:
            bounds.add(min(-(-(tensor.offset + tensor.nbytes) // 64) * 64, size))
        before = layer
    ordered = sorted(bounds)
    return [length for start, end in zip(ordered, ordered[1:], strict=False) for length in cut_evenly(end - start)]


def hash_chunks(path: Path, lengths: Sequence[int], whole: hashlib._Hash | None = None) -> Chunks:
    """Hash `path` chunk by chunk. BundleError when it has fewer bytes; memory for one chunk is needed.

    whole: a hash that gets all of the bytes too.
    """
    found = []
    with path.open("rb", buffering=0) as stream:
        for length in lengths:
            assert length <= MAX_CHUNK_BYTES
            block = stream.read(length)
            while len(block) < length:
                more = stream.read(length - len(block))
                if not more:
                    raise BundleError(f"{path} became shorter while it was read", remedy="push again")
                block += more
            found.append((length, hashlib.sha256(block).hexdigest()))
            if whole is not None:
                whole.update(block)
    return tuple(found)


def hash_known_file(path: Path, sha256: str, lengths: Sequence[int]) -> Chunks:
    """Return the chunks of a file whose SHA-256 is on record, from the cache if this very content was cut before.

    BundleError when the file has another SHA-256 when it is cut. What changes later is refused by the device.
    """
    if len(lengths) == 1:
        return ((lengths[0], sha256),)
    cuts = hashlib.sha256(json.dumps(list(lengths)).encode()).hexdigest()[:16]
    folder = cache_folder("chunks")
    record = folder / f"{sha256}-{cuts}"
    kept = _read_hashes(record, len(lengths))
    if kept is not None:
        os.utime(record)
        return tuple(zip(lengths, kept, strict=True))
    # The device hashes chunks only: that they are those of the recorded content must be known here.
    whole = hashlib.sha256()
    chunks = hash_chunks(path, lengths, whole)
    if whole.hexdigest() != sha256:
        raise BundleError(f"{path} is damaged: its SHA-256 is not the one in the manifest", remedy="pack it anew")
    temporary = record.with_name(f".{record.name}.{os.getpid()}")
    temporary.write_text("".join(f"{digest}\n" for _, digest in chunks))
    os.replace(temporary, record)
    lists = sorted(folder.glob("[0-9a-f]*"), key=lambda entry: entry.stat().st_mtime, reverse=True)
    for old in lists[KEPT_LISTS:]:
        old.unlink(missing_ok=True)
    return chunks


def _read_hashes(path: Path, count: int) -> list[str] | None:
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return lines if len(lines) == count and all(HASH.fullmatch(line) for line in lines) else None
