"""Write a file so that it appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from edgeawq.errors import UsageError


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a temporary file, sync it and rename it to `path`; only its owner can read it.

    Raises UsageError when that is not possible; a file that was there before stays as it was then.
    """
    import tempfile  # 5 ms that only a program that saves something should pay

    if path.is_dir():
        raise UsageError(f"cannot save to {path}: it is a folder", remedy="give a file name")
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot save to {path}: {describe_os_error(error)}", remedy="give another file name"
        ) from error


def describe_os_error(error: OSError | ValueError) -> str:
    """The reason alone, without the number and the path."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
