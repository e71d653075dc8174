"""Where things are kept that only save time: prompts, vocabularies, numbers of threads."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def find_cache_folder() -> Path:
    """$EDGEAWQ_CACHE or ~/.cache/edgeawq, as for built kernels."""
    root = os.environ.get("EDGEAWQ_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "edgeawq"


def prune_folder(folder: Path, pattern: str, n_kept: int) -> None:
    """Remove all files that match but the `n_kept` newest; one that cannot be removed stays."""
    for old in sorted(folder.glob(pattern), key=_read_age)[:-n_kept]:
        with suppress(OSError):
            old.unlink()


def _read_age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # gone already
