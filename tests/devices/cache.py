"""Where root trees and the devices' state are kept, outside the repository."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """$EDGEAWQ_DEVICES, or edgeawq/devices in the user's cache."""
    named = os.environ.get("EDGEAWQ_DEVICES")
    if named:
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "edgeawq" / "devices"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; wait for it. The lock goes with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
