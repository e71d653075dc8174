"""Small file operations that survive a power cut, and checks of values that came from outside."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .limits import MAX_RELEASE_BYTES


def fsync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: str, data: bytes, mode: int = 0o644) -> None:
    """Write a small file so that, after a power cut too, it is wholly the old or wholly the new one."""
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as stream:
        os.fchmod(stream.fileno(), mode)
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    fsync_folder(os.path.dirname(path))


def remove(path: str) -> None:
    """Remove a file, or a folder that has no business where it is."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def read_bytes(path: str, limit: int = MAX_RELEASE_BYTES) -> bytes | None:
    """Return a file's content; None when it cannot be read or is longer than `limit`."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(limit + 1)
    except OSError:
        return None
    return data if len(data) <= limit else None


def read_json(path: str, limit: int) -> dict[str, Any]:
    """Return the JSON object in `path`; an empty one when the file is not there or is not JSON."""
    data = read_bytes(path, limit)
    try:
        found = json.loads(data) if data is not None else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_all(descriptor: int, block: memoryview, offset: int) -> None:
    """Write all of `block` at `offset`; several threads may do so with one descriptor."""
    while block:
        count = os.pwrite(descriptor, block, offset)
        block, offset = block[count:], offset + count


def fsync_all(descriptors: list[int]) -> None:
    """Make several files durable at a time: the file system commits them together."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(os.fsync, descriptors))


def free_bytes(path: str) -> int:
    """Return the room for this user on the disk where `path` is, or will be."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    numbers = os.statvfs(path)
    return numbers.f_bavail * numbers.f_frsize


def is_text(value: Any, limit: int) -> bool:
    """True for a printable string of at most `limit` bytes."""
    return isinstance(value, str) and len(value.encode("utf-8", "replace")) <= limit and value.isprintable()


def is_count(value: Any, limit: int) -> bool:
    """True for a whole number between 0 and `limit`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limit
