"""Where the host keeps what is costly to make again, and how that is thrown away."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

# What the same command makes again without a network. Wheels and measured profiles stay; the rest bounds itself.
PRUNED = ("checkpoints", "bundles", "kernels")
LEFT_BEHIND_S = 24 * 3600  # without a change: whoever wrote it is gone


@dataclass(frozen=True)
class CacheEntry:
    """A file or folder of the cache. used_at: seconds since the epoch."""

    path: Path
    size: int
    used_at: float

    @property
    def is_unfinished(self) -> bool:
        """Whether a process was, or is, at work on it."""
        return self.path.name.startswith(".")


def find_cache() -> Path:
    """$EDGEAWQ_CACHE or ~/.cache/edgeawq."""
    root = os.environ.get("EDGEAWQ_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "edgeawq"


def cache_folder(name: str) -> Path:
    """Return the folder `name` of the cache, made if need be."""
    folder = find_cache() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def list_entries() -> list[CacheEntry]:
    """What `prune_cache` may remove, the longest unused first."""
    entries = []
    for name in PRUNED:
        folder = find_cache() / name
        if folder.is_dir() and not folder.is_symlink():
            entries += [_describe(path) for path in folder.iterdir()]
    return sorted(entries, key=lambda entry: entry.used_at)


def prune_cache(unused_s: float, now: float) -> list[CacheEntry]:
    """Remove what has not been used for so long, and what dead processes have left; return what is gone."""
    removed = []
    for entry in list_entries():
        if now - entry.used_at < (LEFT_BEHIND_S if entry.is_unfinished else unused_s):
            continue
        if entry.path.is_dir() and not entry.path.is_symlink():
            # Away from its name first: whoever looks for it now finds all of it or nothing.
            grave = entry.path.with_name(f".removed-{os.getpid()}-{entry.path.name}")
            os.rename(entry.path, grave)
            shutil.rmtree(grave)
        else:
            entry.path.unlink(missing_ok=True)
        removed.append(entry)
    return removed


def _describe(path: Path) -> CacheEntry:
    """Sizes of everything below; a folder was used when it or, while it is unfinished, anything in it was touched."""
    found = path.lstat()
    size, used_at = found.st_size, found.st_mtime
    if path.is_dir() and not path.is_symlink():
        size = 0
        for part in path.rglob("*"):
            stat = part.lstat()
            size += stat.st_size if not part.is_dir() else 0
            used_at = max(used_at, stat.st_mtime)
    return CacheEntry(path, size, used_at)
