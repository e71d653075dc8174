"""The files of a bundle: opened without following links, and compared with the manifest."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from packager.manifest import Manifest
from packager.strict_fields import refuse

_PATH_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def open_bundle_file(folder: Path, path: str) -> BinaryIO:
    """Open a bundle's file for reading; links, devices and paths that leave `folder` are refused.

    The folder itself may be reached through a link (a release's `current` is one); nothing below it may be.
    """
    check_path(path)
    current = folder
    try:
        for part in path.split("/")[:-1]:
            current = current / part
            if not stat.S_ISDIR(os.lstat(current).st_mode):
                raise refuse(f"{current} is not a folder")
        descriptor = os.open(folder / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise refuse(f"cannot open {folder / path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refuse(f"{folder / path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def verify_files(folder: Path, manifest: Manifest, progress: Callable[[int, int], None] | None = None) -> None:
    """Compare every file's size and SHA-256 with the manifest; `progress` gets (bytes done, bytes in all)."""
    total = sum(entry.size for entry in manifest.files)
    done = 0
    for entry in manifest.files:
        with open_bundle_file(folder, entry.path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                raise refuse(f"{folder / entry.path} has {size} bytes, the manifest says {entry.size}")
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
        if digest.hexdigest() != entry.sha256:
            raise refuse(
                f"{folder / entry.path} is damaged: its SHA-256 is {digest.hexdigest()[:16]}…,"
                f" the manifest says {entry.sha256[:16]}…"
            )


def check_path(path: object) -> None:
    if not isinstance(path, str) or not 0 < len(path) <= 255:
        raise refuse("a path in the manifest is not a text of 1 to 255 characters")
    parts = path.split("/")
    # A part may not start with a dot, so "..", "." and hidden names fall out together with the empty part of "/etc".
    if len(parts) > 4 or not all(_PATH_PART.fullmatch(part) for part in parts):
        raise refuse(f"the path {ascii(path)[:80]} in the manifest is not a plain relative path")
