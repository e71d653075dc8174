"""A release, described on the host: every file with its hash, named by the hash of the description."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgeawq
from edgeawq.deploy.chunks import Chunks, cut_at_tensors, cut_evenly, hash_chunks, hash_known_file
from edgeawq.deploy.receiver.description import name_content, release_id
from edgeawq.deploy.receiver.limits import RELEASE_FORMAT, RELEASE_FORMAT_VERSION
from edgeawq.errors import BundleError, DeployError
from packager.manifest import MANIFEST_NAME, Manifest
from packager.manifest_reader import read_manifest

BUNDLE_FOLDER = "bundle"
SITE_FOLDER = "site"


@dataclass(frozen=True)
class ReleaseFile:
    """One file of a release: where it lies here, and what it is called and must hash to there."""

    path: str  # on the device, below the release folder
    source: Path
    chunks: Chunks

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(length for length, _ in self.chunks)

    @property
    def name(self) -> str:
        """The name of its content in the device's store."""
        return name_content(self.chunks)

    def describe(self) -> dict[str, Any]:
        """Return the file's entry in the release's description."""
        if len(self.chunks) > 1:
            return {"path": self.path, "chunks": [list(chunk) for chunk in self.chunks]}
        return {"path": self.path, "size": self.chunks[0][0], "sha256": self.chunks[0][1]}


@dataclass(frozen=True)
class Release:
    """A release that can be sent. `data` is the description's bytes, of which `identity` is the name."""

    identity: str
    data: bytes
    files: tuple[ReleaseFile, ...]
    name: str
    profile: str

    @property
    def total_bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size for file in self.files)


def list_bundle(bundle: Path) -> tuple[Manifest, list[ReleaseFile]]:
    """Return a bundle's manifest and its files. The manifest's hashes are believed: the device checks them."""
    manifest = read_manifest(bundle)
    files = [hash_file(f"{BUNDLE_FOLDER}/{MANIFEST_NAME}", bundle / MANIFEST_NAME)]
    for entry in manifest.files:
        source = bundle / entry.path
        found = source.lstat() if source.exists() else None
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
            size = "is missing" if found is None else f"has {found.st_size} bytes"
            raise BundleError(
                f"{source} {size}, the manifest says {entry.size}", remedy="pack the bundle again with `edgeawq pack`"
            )
        tensors = manifest.tensors if entry.role == "weights" else ()
        chunks = hash_known_file(source, entry.sha256, cut_at_tensors(entry.size, tensors))
        files.append(ReleaseFile(f"{BUNDLE_FOLDER}/{entry.path}", source, chunks))
    return manifest, files


def list_site(site: Path) -> list[ReleaseFile]:
    """Return all files of a site folder, hashed. Byte code and installer records are left out."""
    files = []
    for folder, folders, names in os.walk(site):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            source = Path(folder, name)
            if not stat.S_ISREG(source.lstat().st_mode):
                raise DeployError(f"{source} is not a regular file", remedy="remove the site folder and push again")
            files.append(hash_file(f"{SITE_FOLDER}/{source.relative_to(site).as_posix()}", source))
    return files


def hash_file(path: str, source: Path) -> ReleaseFile:
    """Return `source` as a release's file called `path`."""
    return ReleaseFile(path, source, hash_chunks(source, cut_evenly(source.stat().st_size)))


def describe_release(*, name: str, profile: str, machine: str, python: str, files: Iterable[ReleaseFile]) -> Release:
    """Return the release of `files`. Same content, same bytes, same name: nothing of time or place is in it.

    machine: as `uname -m` says it ("aarch64"); python: the series that the site folder is for ("3.11").
    """
    ordered = tuple(sorted(files, key=lambda file: file.path))
    description = {
        "format": RELEASE_FORMAT,
        "format_version": RELEASE_FORMAT_VERSION,
        "tool": {"name": "edgeawq", "version": edgeawq.__version__},
        "name": name,
        "profile": profile,
        "requires": {"machine": machine, "python": python},
        "files": [file.describe() for file in ordered],
    }
    data = json.dumps(description, sort_keys=True, separators=(",", ":")).encode("ascii")
    return Release(release_id(data), data, ordered, name, profile)
