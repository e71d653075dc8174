"""Where the host keeps what is costly to make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return the folder `name` in $EDGEAWQ_CACHE or ~/.cache/edgeawq, made if need be."""
    root = os.environ.get("EDGEAWQ_CACHE")
    base = Path(root) if root else Path.home() / ".cache" / "edgeawq"
    folder = base / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
