"""Making a folder appear whole or not at all."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeawq.errors import CheckpointError, UsageError

PARTIAL_MARK = ".partial-"
REPLACED_MARK = ".replaced-"


def check_target(folder: Path, *, overwrite: bool, is_own: Callable[[Path], bool]) -> None:
    """Raise UsageError where writing to `folder` would destroy something.

    An empty folder is fine. One that `is_own` recognizes is replaced only with `overwrite`; anything else never.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} exists and is not a folder", remedy="choose another output folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not is_own(folder):
        raise UsageError(
            f"{folder} is not empty and was not written by edgeawq; it is left alone",
            remedy="choose another output folder, or empty this one yourself",
        )
    if not overwrite:
        raise UsageError(
            f"{folder} already holds a checkpoint", remedy="choose another output folder, or allow it to be overwritten"
        )


@contextmanager
def make_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into; it takes its place when the block ends without an error.

    What lay at `folder` is deleted after that, and put back where the switch fails. An I/O error becomes a
    CheckpointError that names the folder.
    """
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        partial = folder.with_name(f".{folder.name}{PARTIAL_MARK}{os.getpid()}-{secrets.token_hex(4)}")
        partial.mkdir()
        try:
            yield partial
            for path in partial.iterdir():
                sync_path(path)
            sync_path(partial)
            swap_in(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written: {error.strerror or error}",
            remedy="check the free space and the permissions of that place",
        ) from error


def swap_in(partial: Path, folder: Path) -> None:
    """Rename `partial` to `folder`, moving aside and then deleting what is there."""
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
    if not folder.exists():
        partial.rename(folder)
        sync_path(folder.parent)
        return
    replaced = folder.with_name(f".{folder.name}{REPLACED_MARK}{os.getpid()}-{secrets.token_hex(4)}")
    folder.rename(replaced)
    try:
        partial.rename(folder)
    except OSError:
        replaced.rename(folder)
        raise
    sync_path(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the partial folders of runs that were killed."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}{PARTIAL_MARK}*"):
        number = path.name.split(PARTIAL_MARK)[-1].partition("-")[0]
        if number.isdigit() and not is_running(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def is_running(process_id: int) -> bool:
    """Whether a process of that number exists on this machine."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync_path(path: Path) -> None:
    """See a file's bytes, or a folder's names, safely on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
