"""`current` and `previous`: which release runs, and what starts it."""

from __future__ import annotations

import contextlib
import os
import sys

from .files import fsync_folder, read_bytes, write_file
from .home import Home
from .limits import MAX_BAD_STARTS, RELEASE_ID
from .refusal import Refusal


def find_target(home: Home, name: str) -> str | None:
    """Return the release that the symlink `name` points at, if that release is there."""
    try:
        folder, _, identity = os.readlink(home.path(name)).rpartition("/")
    except OSError:
        return None
    whole = folder == "releases" and RELEASE_ID.fullmatch(identity) and os.path.isdir(home.path(name))
    return identity if whole else None


def point(home: Home, name: str, identity: str) -> None:
    """Let the symlink `name` point at a release, from one moment to the next."""
    temporary = home.path(f"{name}.new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    os.symlink(f"releases/{identity}", temporary)
    try:
        os.replace(temporary, home.path(name))
    except IsADirectoryError:
        os.unlink(temporary)
        raise Refusal("layout", f"{home.path(name)} is a folder", remedy="move it away and push again") from None
    fsync_folder(home.root)


def switch_to(home: Home, identity: str) -> str | None:
    """Make a release the current one and return what was; the caller holds the lock."""
    before = find_target(home, "current")
    if before != identity:
        # In this order a cut between the two leaves the running release as it was.
        if before:
            point(home, "previous", before)
        point(home, "current", identity)
    clear_starts(home, identity)
    return before


# ---- bad starts: `bin/edgeawq` counts a start before it happens, edgeawq takes the count away when it has answered


def count_starts(home: Home, identity: str | None) -> int:
    """Return how often a release was started in a row without an answer."""
    text = read_bytes(home.path("starts", identity or "none"), 64) or b""
    return text.count(b"\n")


def clear_starts(home: Home, identity: str) -> None:
    """A release that is switched on, or that was checked again, gets new chances."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(home.path("starts", identity))


def write_launcher(home: Home) -> None:
    """Write bin/edgeawq, which runs the current release; for `edgeawq chat NAME` and for people on the device.

    A release that was started MAX_BAD_STARTS times in a row and never came to an answer (it crashes, or takes all
    memory) is left alone, and the previous one runs, until something is pushed or rolled back.
    """
    python = "'" + sys.executable.replace("'", "'\\''") + "'"
    text = f"""#!/bin/sh
# Written by `edgeawq push`: runs edgeawq of the release that is current when it starts; @bundle is its model.
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd -P) || exit 1
release=$(CDPATH= cd -- "${{EDGEAWQ_RELEASE:-$root/current}}" && pwd -P) || exit 1
if [ -z "$EDGEAWQ_RELEASE" ] && [ "$1" = chat -o "$1" = run ]; then
  starts="$root/starts/${{release##*/}}"
  if [ -s "$starts" ] && [ "$(wc -l < "$starts")" -ge {MAX_BAD_STARTS} ] && [ -d "$root/previous" ]; then
    echo "edgeawq: release ${{release##*/}} was started {MAX_BAD_STARTS} times and never answered" >&2
    echo "edgeawq: the previous one runs; push or roll back to change this" >&2
    release=$(CDPATH= cd -- "$root/previous" && pwd -P) || exit 1
  else
    echo start 2>/dev/null >> "$starts" && export EDGEAWQ_STARTS="$starts"
  fi
fi
if [ "$2" = @bundle ]; then
  command=$1
  shift 2
  set -- "$command" "$release/bundle" "$@"
fi
export PYTHONPATH="$release/site" PYTHONNOUSERSITE=1 PYTHONSAFEPATH=1 PYTHONUTF8=1
exec {python} -m edgeawq "$@"
"""
    path = home.path("bin", "edgeawq")
    if read_bytes(path) != text.encode():
        write_file(path, text.encode(), 0o755)
