"""What a release may be: its description, checked field by field."""

from __future__ import annotations

import hashlib
import json
import platform
import struct
import sys
from dataclasses import dataclass, field
from typing import Any

from .files import is_count, is_text
from .limits import (
    HASH,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    MAX_TOTAL_BYTES,
    RELEASE_FORMAT,
    RELEASE_FORMAT_VERSION,
)
from .refusal import Refusal


@dataclass(frozen=True)
class File:
    """A file of a release. `chunks` are (length, SHA-256), in order; `name` is its content's name in the store."""

    path: str
    size: int
    name: str
    chunks: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Description:
    """A release: `data` are the description's bytes as they came, `identity` the first 64 bits of their SHA-256."""

    identity: str
    data: bytes
    name: str
    profile: str
    machine: str
    python: str
    files: tuple[File, ...] = field(repr=False)

    @property
    def total_bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size for file in self.files)


def release_id(data: bytes) -> str:
    """Return a release's name: the first 64 bits of the SHA-256 of its description, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()[:16]


def name_content(chunks: tuple[tuple[int, str], ...]) -> str:
    """Return the store's name for a file of these chunks: one chunk's own hash, else the hash of the list.

    A file of several chunks is never hashed as a whole: its chunks are hashed as they arrive, by several threads and
    out of order, and the list of them says as much as a hash of all would.
    """
    if len(chunks) == 1:
        return chunks[0][1]
    text = "".join(f"{length} {digest}\n" for length, digest in chunks)
    return hashlib.sha256(f"edgeawq-chunks\n{text}".encode()).hexdigest()


def check_path(path: Any) -> str:
    """Return `path` if it is a relative path below bundle/ or site/ that can mean nothing else."""
    if not isinstance(path, str) or not path or len(path.encode("utf-8", "replace")) > MAX_PATH_BYTES:
        raise Refusal("manifest", f"a path in the release is empty or longer than {MAX_PATH_BYTES} bytes")
    parts = path.split("/")
    bad = any(part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > 255 for part in parts)
    if bad or not path.isprintable() or "\\" in path or len(parts) < 2 or parts[0] not in ("bundle", "site"):
        raise Refusal("manifest", f"the release names a path that is not allowed: {path[:200]!r}")
    return path


def parse_release(data: bytes) -> Description:
    """Return the release description in `data` after every field was checked."""
    try:
        release = json.loads(data)
    except (ValueError, RecursionError):
        raise Refusal("manifest", "the release description is not valid JSON") from None
    if not isinstance(release, dict) or release.get("format") != RELEASE_FORMAT:
        raise Refusal("manifest", f"the release description is not of the format {RELEASE_FORMAT!r}")
    version = release.get("format_version")
    if not is_count(version, RELEASE_FORMAT_VERSION) or version != RELEASE_FORMAT_VERSION:
        raise Refusal(
            "manifest", f"release format {release.get('format_version')!r} is not known, only {RELEASE_FORMAT_VERSION}"
        )
    for key in ("name", "profile"):
        if not is_text(release.get(key), MAX_NAME_BYTES):
            raise Refusal("manifest", f"the release's {key!r} is missing or too long")
    requires = release.get("requires")
    if not isinstance(requires, dict) or not all(is_text(requires.get(key), 50) for key in ("machine", "python")):
        raise Refusal("manifest", "the release does not say which machine and Python it requires")
    return Description(
        identity=release_id(data),
        data=data,
        name=release["name"],
        profile=release["profile"],
        machine=requires["machine"],
        python=requires["python"],
        files=_parse_files(release.get("files")),
    )


def _parse_files(entries: Any) -> tuple[File, ...]:
    if not isinstance(entries, list) or not entries or len(entries) > MAX_FILES:
        raise Refusal("manifest", f"the release has no files, or more than {MAX_FILES}")
    files: list[File] = []
    sizes: dict[str, int] = {}
    seen: set[str] = set()
    folders: set[str] = set()
    n_chunks = 0
    for entry in entries:
        if not isinstance(entry, dict):
            raise Refusal("manifest", "a file of the release is not described by an object")
        path = check_path(entry.get("path"))
        chunks = _parse_chunks(entry, path)
        n_chunks += len(chunks)
        file = File(path, sum(length for length, _ in chunks), name_content(chunks), chunks)
        if n_chunks > MAX_CHUNKS or file.size > MAX_FILE_BYTES:
            raise Refusal("manifest", f"{path!r} is too large, or the release has more than {MAX_CHUNKS} chunks")
        if path in seen or sizes.setdefault(file.name, file.size) != file.size:
            raise Refusal("manifest", f"{path!r} is described twice, or one hash has two sizes")
        seen.add(path)
        parts = path.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        files.append(file)
    if seen & folders:
        raise Refusal("manifest", f"{sorted(seen & folders)[0]!r} is a file and a folder at once")
    if sum(file.size for file in files) > MAX_TOTAL_BYTES:
        raise Refusal("manifest", f"the release is larger than {MAX_TOTAL_BYTES} bytes")
    return tuple(files)


def _parse_chunks(entry: dict[str, Any], path: str) -> tuple[tuple[int, str], ...]:
    """Return a file's chunks: `chunks`, or `size` and `sha256` of a file that is one chunk."""
    listed = entry.get("chunks", [[entry.get("size"), entry.get("sha256")]])
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_CHUNKS or ("chunks" in entry and len(listed) < 2):
        raise Refusal("manifest", f"{path!r} has no valid list of chunks")
    for chunk in listed:
        good = isinstance(chunk, list) and len(chunk) == 2 and is_count(chunk[0], MAX_CHUNK_BYTES)
        if not good or not isinstance(chunk[1], str) or not HASH.fullmatch(chunk[1]):
            raise Refusal("manifest", f"{path!r} has no valid SHA-256 or size")
        if len(listed) > 1 and not chunk[0]:
            raise Refusal("manifest", f"{path!r} has an empty chunk")
    return tuple((int(length), str(digest)) for length, digest in listed)


def check_requirements(release: Description) -> None:
    """Refuse a release that was made for another machine or another Python."""
    machine, python = platform.machine(), f"{sys.version_info[0]}.{sys.version_info[1]}"
    if release.machine != machine:
        raise Refusal("unfit", f"the release is for {release.machine}, this device is {machine}")
    if struct.calcsize("P") != 8:
        raise Refusal("unfit", "this device's Python is a 32-bit program; a 64-bit system is needed")
    if release.python != python:
        raise Refusal("unfit", f"the release is for Python {release.python}, this device has {python}")
