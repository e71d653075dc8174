"""Measured profiles of one device, kept in a folder: the newest is the device's present, the others its past."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from edgeawq.errors import ProfileError
from edgeawq.profiling.json_values import MAX_BYTES
from edgeawq.profiling.schema import Profile, dump_profile, parse_profile

MAX_KEPT = 32
SUFFIX = ".json"
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def profile_folder(root: Path, device: str) -> Path:
    """Where the profiles of `device` lie below `root`; ProfileError for a name that is not one."""
    if not _DEVICE.fullmatch(device):
        raise ProfileError(f"{device!r} is not a device's name", remedy="use letters, digits, dots, hyphens")
    return root / device


def store_profile(folder: Path, profile: Profile) -> Path:
    """Keep a profile in `folder` under its time and return the file; the oldest beyond MAX_KEPT go."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / (re.sub(r"[^0-9A-Za-z]+", "-", profile.created)[:40] + SUFFIX)
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(dump_profile(profile))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        for old in _list_files(folder)[:-MAX_KEPT]:
            old.unlink(missing_ok=True)
    except OSError as error:
        raise ProfileError(
            f"the profile cannot be kept in {folder}: {error.strerror or error}",
            remedy="make room, or set EDGEAWQ_CACHE",
        ) from None
    return target


def load_history(folder: Path) -> tuple[Profile, ...]:
    """The profiles in `folder`, oldest first; none where there is no folder. A file that cannot be read is left out.

    Files of another version of the format are part of a past that cannot be compared any more.
    """
    found = []
    for path in _list_files(folder):
        try:
            found.append(read_profile(path))
        except ProfileError:
            continue
    return tuple(sorted(found, key=lambda profile: profile.created))


def read_profile(path: Path) -> Profile:
    """Read one measured profile; ProfileError where it is none."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ProfileError(
            f"{path} cannot be read: {error.strerror or error}",
            remedy="`edgeawq profile DEVICE --json FILE` writes one",
        ) from None
    return parse_profile(data, str(path))


def _list_files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX and path.is_file())
    except OSError:
        return []
