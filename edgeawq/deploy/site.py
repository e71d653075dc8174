"""The site folder of a release: edgeawq and its Python packages for the device's platform, assembled here once."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from edgeawq.deploy.cache import cache_folder

# What the site folder holds of this program; a change in any of it makes a new site folder.
SOURCE_PACKAGES = ("edgeawq", "packager", "device_profiles", "cpu_kernels")
KEPT_SITES = 3  # of each kind; one has about 150 MB


def prepare_site(python: str, machine: str, report: Callable[[str], None] | None = None) -> Path:
    """Return the site folder for Python `python` ("3.11") on `machine` ("aarch64"), from the cache if it is there.

    `report` gets a line on what is going on. SiteError names what could not be had.
    """
    from packager.wheelhouse import assemble_site

    folder = cache_folder("sites")
    kind = f"{machine}-py{python}"
    final = folder / f"{kind}-{hash_sources(SOURCE_PACKAGES)}"
    if final.is_dir():
        os.utime(final)
        return final
    temporary = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=folder))
    try:
        major, _, minor = python.partition(".")
        assemble_site((int(major), int(minor)), machine, temporary / "site", report=report)
        try:
            os.rename(temporary / "site", final)
        except OSError:
            if not final.is_dir():  # another push may have been quicker
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    kept = sorted(folder.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in kept[KEPT_SITES:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def hash_sources(packages: Sequence[str]) -> str:
    """Return a short hash of this program's own source files in `packages`."""
    state = hashlib.sha256()
    for package in packages:
        spec = find_spec(package)
        for root in sorted(spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(root).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    state.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode())
                    state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()[:16]
