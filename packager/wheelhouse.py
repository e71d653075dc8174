"""Assemble a device's site folder on the host: what Python on the device needs, from wheels for its platform.

The device needs no pip, no compiler and no internet. Wheels come from the package index through pip, are kept in the
cache with their hashes, and from then on the same site is assembled without a network.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import edgeawq
from edgeawq.errors import SiteError
from packager.bundle import dump_json
from packager.site_files import copy_own_packages, unpack_wheel
from packager.wheels import Wheel, download_wheels, list_requirements, read_lock, read_wheels, write_lock

SITE_INFO = "edgeawq-site.json"
MACHINES = ("aarch64", "x86_64")
MIN_PYTHON = (3, 10)


@dataclass(frozen=True)
class SiteSummary:
    """A site folder. The digest is that of all names and contents: the same digest means the same files."""

    path: Path
    python_version: tuple[int, int]
    machine: str
    packages: tuple[tuple[str, str, int], ...]  # name, version, bytes in the site folder; edgeawq itself is one
    n_files: int
    n_bytes: int
    digest: str  # SHA-256 in hex


def assemble_site(
    python_version: tuple[int, int],
    machine: str,
    destination: Path,
    *,
    wheels: Path | None = None,
    refresh: bool = False,
    report: Callable[[str], None] | None = None,
) -> SiteSummary:
    """Write the site folder for a device into `destination`; the same wheels give the same files.

    python_version: of the device, (3, 11); machine: "aarch64" or "x86_64" (glibc 2.28 or later). wheels: a folder
    of wheels to take instead of the package index. refresh: ask the index for newer versions. report gets a line on
    what is going on. An earlier site folder at `destination` is replaced, anything else is left alone.
    Raises SiteError, naming the package that is missing.
    """
    _check_device(python_version, machine)
    _check_destination(destination)
    say = report or _say_nothing
    try:
        with tempfile.TemporaryDirectory(prefix="edgeawq-wheels-") as scratch:
            if wheels is None:
                found = _cached_wheels(python_version, machine, refresh, say)
            else:
                say(f"taking wheels from {wheels}")
                download_wheels(python_version, machine, Path(scratch), source=wheels)
                found = read_wheels(Path(scratch))
            say(f"unpacking {len(found)} wheels")
            return _write_site(python_version, machine, destination, found)
    except OSError as error:
        raise SiteError(
            f"cannot assemble the site folder {destination}: {error.strerror or error}",
            remedy="make sure that there are 500 MB free there and in the cache",
        ) from None


def _cached_wheels(
    python_version: tuple[int, int], machine: str, refresh: bool, say: Callable[[str], None]
) -> list[Wheel]:
    """The wheels for this kind of device, downloaded if the cache lacks them or one was damaged."""
    name = f"cp{python_version[0]}{python_version[1]}-{machine}"
    requirements = list_requirements(python_version)
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f"{name}.lock"):
        folder = root / name
        kept = None if refresh else read_lock(folder, requirements)
        if kept is not None:
            return kept
        say(f"downloading {len(requirements)} packages for Python {python_version[0]}.{python_version[1]} on {machine}")
        # Into a folder of its own first: a download that fails leaves the earlier wheels as they were.
        partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
        try:
            download_wheels(python_version, machine, partial)
            write_lock(partial, requirements)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return read_wheels(folder)


def cache_folder() -> Path:
    """Where wheels are kept: $EDGEAWQ_CACHE/wheels or ~/.cache/edgeawq/wheels."""
    base = os.environ.get("EDGEAWQ_CACHE")
    return (Path(base) if base else Path.home() / ".cache" / "edgeawq") / "wheels"


def _write_site(python_version: tuple[int, int], machine: str, destination: Path, wheels: list[Wheel]) -> SiteSummary:
    destination = destination.absolute()
    destination.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        packages = [(wheel.name, wheel.version, unpack_wheel(wheel.path, staged)) for wheel in wheels]
        packages.append(("edgeawq", edgeawq.__version__, copy_own_packages(staged)))
        info = {
            "python": f"{python_version[0]}.{python_version[1]}",
            "machine": machine,
            "packages": {name: version for name, version, _ in packages},
        }
        (staged / SITE_INFO).write_bytes(dump_json(info))
        n_files, n_bytes, digest = _digest(staged)
        staged.chmod(0o755)
        shutil.rmtree(destination, ignore_errors=True)
        staged.rename(destination)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return SiteSummary(destination, python_version, machine, tuple(packages), n_files, n_bytes, digest)


def _digest(folder: Path) -> tuple[int, int, str]:
    """(files, bytes, SHA-256 over names and contents)"""
    whole = hashlib.sha256()
    n_files = n_bytes = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        whole.update(f"{path.relative_to(folder).as_posix()}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        n_files += 1
        n_bytes += len(content)
    return n_files, n_bytes, whole.hexdigest()


def _check_device(python_version: tuple[int, int], machine: str) -> None:
    if tuple(python_version) < MIN_PYTHON:
        raise SiteError(
            f"the device has Python {python_version[0]}.{python_version[1]}; edgeawq needs 3.10 or later",
            remedy="Raspberry Pi OS 12 (bookworm) has 3.11, JetPack 6 has 3.10",
        )
    if machine not in MACHINES:
        raise SiteError(f"there are no wheels for the machine {machine!r}", remedy=f"known: {', '.join(MACHINES)}")


def _check_destination(destination: Path) -> None:
    if not os.path.lexists(destination):
        return
    is_site = destination.is_dir() and not destination.is_symlink() and (destination / SITE_INFO).is_file()
    if not is_site and not (destination.is_dir() and not any(destination.iterdir())):
        raise SiteError(f"{destination} exists and is not a site folder; it is not touched", remedy="choose another")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say_nothing(line: str) -> None:
    """Report to nobody."""
