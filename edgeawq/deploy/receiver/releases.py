"""Releases on the device: made of the store's content, listed, repaired, removed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Callable
from typing import Any

from .description import Description, File, parse_release, release_id
from .files import fsync_folder, read_bytes, remove, write_file
from .home import Home
from .incoming import hash_blocks
from .limits import MAX_RELEASES, RELEASE_ID
from .pointers import find_target
from .refusal import Refusal

MANY_LINKS = 1000  # the lowest limit of a file system is 1023

Alive = Callable[[], None]


def list_releases(home: Home) -> list[str]:
    """Return the ids of all releases, the last activated first."""
    try:
        names = [name for name in os.listdir(home.path("releases")) if RELEASE_ID.fullmatch(name)]
    except FileNotFoundError:
        return []
    known = home.state()["releases"]
    return sorted(names, key=lambda name: (-known.get(name, {}).get("sequence", 0), name))


def choose_known(home: Home, identity: Any) -> str:
    """Return the id in a request if such a release is there."""
    if not isinstance(identity, str) or not RELEASE_ID.fullmatch(identity):
        raise Refusal("protocol", "no valid release was named")
    if not os.path.isdir(home.path("releases", identity)):
        raise Refusal("no-release", f"there is no release {identity} on the device")
    return identity


def read_release(home: Home, identity: str) -> Description:
    """Return the description of a release that is there."""
    data = read_bytes(home.path("releases", identity, "release.json"))
    if data is None or release_id(data) != identity:
        raise Refusal("damaged", f"the description of release {identity} is damaged", files=["release.json"])
    return parse_release(data)


def index_chunks(home: Home) -> dict[str, tuple[str, int]]:
    """Return where on this device each chunk of the large files is: hash → (path, offset)."""
    found: dict[str, tuple[str, int]] = {}
    for identity in list_releases(home)[:MAX_RELEASES]:
        try:
            release = read_release(home, identity)
        except Refusal:
            continue
        for file in release.files:
            if len(file.chunks) == 1:
                continue
            path = home.object_path(file.name)
            if not os.path.isfile(path):  # it was found to be damaged: most of its chunks are good
                path = home.path("releases", identity, file.path)
            offset = 0
            for length, digest in file.chunks:
                found.setdefault(digest, (path, offset))
                offset += length
    return found


def commit_release(home: Home, release: Description, signature: bytes, alive: Alive) -> dict[str, Any]:
    """Make a release of content in the store: an immutable folder of hard links; or repair the one that is there."""
    final = home.path("releases", release.identity)
    for file in release.files:
        if not home.has_object(file.name, file.size):
            raise Refusal("incomplete", f"{file.path!r} has not arrived", file=file.path)
    if os.path.isdir(final):
        with home.lock.held():
            for name, data in (("release.json", release.data), ("signature.json", signature)):
                if data and read_bytes(os.path.join(final, name)) != data:
                    write_file(os.path.join(final, name), data)
            repaired = _repair(home, final, release.files, alive)
        return {"ok": True, "id": release.identity, "new": False, "repaired": repaired}
    with home.lock.held():
        temporary = f"{final}.{home.lock.token}.tmp"
    _build(home, temporary, release, signature, alive)
    with home.lock.held():
        os.rename(temporary, final)
        fsync_folder(home.path("releases"))
    home.note("commit", release=release.identity, signed=bool(signature))
    return {"ok": True, "id": release.identity, "new": True, "repaired": []}


def _build(home: Home, folder: str, release: Description, signature: bytes, alive: Alive) -> None:
    os.mkdir(folder)
    folders = {folder}
    for file in release.files:
        target = os.path.join(folder, file.path)
        parent = os.path.dirname(target)
        if parent not in folders:
            os.makedirs(parent, exist_ok=True)
            while parent not in folders:
                folders.add(parent)
                parent = os.path.dirname(parent)
        _link(home.object_path(file.name), target)
        alive()
    write_file(os.path.join(folder, "release.json"), release.data)
    if signature:
        write_file(os.path.join(folder, "signature.json"), signature)
    for path in sorted(folders, reverse=True):
        fsync_folder(path)
        alive()


def _repair(home: Home, folder: str, files: tuple[File, ...], alive: Alive) -> list[str]:
    """Link again what in an existing release is not the store's object (it was damaged and has been replaced)."""
    repaired = []
    for file in files:
        alive()
        target = os.path.join(folder, file.path)
        source = home.object_path(file.name)
        with contextlib.suppress(OSError):
            if os.path.samefile(source, target):
                continue
            # A copy is right where a file has as many links as it may have.
            if os.stat(source).st_nlink >= MANY_LINKS and hash_blocks(target, file, alive):
                continue
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{target}.new")
        _link(source, f"{target}.new")
        if os.path.isdir(target) and not os.path.islink(target):
            remove(target)
        os.replace(f"{target}.new", target)
        fsync_folder(os.path.dirname(target))
        repaired.append(file.path)
    return repaired


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise Refusal("no-links", f"the file system of {source} has no hard links") from error
        if error.errno != errno.EMLINK:
            raise
        shutil.copy2(source, target)  # an empty file that is everywhere: the file system's limit on links is reached
        with open(target, "rb") as stream:
            os.fsync(stream.fileno())


def verify_release(home: Home, identity: str, alive: Alive) -> dict[str, Any]:
    """Hash every file of a release again; throw damaged content out of the store so that a push brings it."""
    verdicts: dict[tuple[int, int], bool] = {}
    damaged = []
    for file in read_release(home, identity).files:
        path = home.path("releases", identity, file.path)
        try:
            found = os.lstat(path)
            key = (found.st_dev, found.st_ino)
            if key not in verdicts:
                verdicts[key] = hash_blocks(path, file, alive)
            good = verdicts[key]
        except OSError:
            good = False
        if not good:
            damaged.append(file.path)
            stored = home.object_path(file.name)
            if home.lock.token and os.path.lexists(stored) and not hash_blocks(stored, file, alive):
                remove(stored)
    if damaged:
        home.note("damage-found", release=identity, files=damaged[:20], count=len(damaged))
    return {"ok": True, "damaged": damaged[:1000], "count": len(damaged)}


def collect_garbage(home: Home, keep: int, alive: Alive) -> dict[str, Any]:
    """Remove all releases but the newest `keep`; never the current, the previous, or one that is running."""
    removed = []
    freed = 0
    with home.lock.held():
        protected = {find_target(home, "current"), find_target(home, "previous"), *running_releases(home)}
        releases = list_releases(home)
        room = max(0, keep - sum(1 for identity in releases if identity in protected))
        for identity in releases:
            if identity in protected:
                continue
            if room:
                room -= 1
                continue
            trash = home.path("releases", f"{identity}.trash")
            os.rename(home.path("releases", identity), trash)  # never half a release under its own name
            shutil.rmtree(trash)
            removed.append(identity)
        stores = [entry.path for entry in os.scandir(home.path("store")) if entry.is_dir(follow_symlinks=False)]
        for folder in [home.path("partial"), *stores]:
            for entry in list(os.scandir(folder)):
                found = entry.stat(follow_symlinks=False)
                # In the store: no release links to it any more. A folder is nothing of ours.
                if found.st_nlink == 1 or stat.S_ISDIR(found.st_mode):
                    remove(entry.path)
                    freed += found.st_blocks * 512
            alive()
        for name in os.listdir(home.path("starts")):
            if name in removed:
                os.unlink(home.path("starts", name))
        home.forget(removed)
    if removed:
        home.note("gc", removed=removed, freed=freed)
    return {"ok": True, "removed": removed, "freed": freed}


def running_releases(home: Home) -> set[str]:
    """Return the releases that a process of this user was started from."""
    found: set[str] = set()
    marker = re.compile(re.escape(home.path("releases")).encode() + rb"/([0-9a-f]{16})/site")
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as stream:
                found.update(match.decode() for match in marker.findall(stream.read(1 << 20)))
    return found
