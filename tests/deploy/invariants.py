"""What must hold on a device at any moment: it runs one whole release, and that release answers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path


def current_release(root: Path) -> str | None:
    """Return the release that `current` points at."""
    try:
        return Path(os.readlink(root / "current")).name
    except FileNotFoundError:
        return None


def answer(root: Path) -> str:
    """Check that the current release is whole and right, let it answer, and return its marker."""
    release = (root / "current").resolve(strict=True)
    data = (release / "release.json").read_bytes()
    assert hashlib.sha256(data).hexdigest()[:16] == release.name
    for entry in json.loads(data)["files"]:
        content = (release / entry["path"]).read_bytes()
        for length, digest in entry.get("chunks") or [[entry["size"], entry["sha256"]]]:
            assert hashlib.sha256(content[:length]).hexdigest() == digest, entry["path"]
            content = content[length:]
        assert not content, entry["path"]
    command = [sys.executable, "-m", "edgeawq", "run", str(release / "bundle"), "--golden", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(release / "site")}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"] is True
    return str(result["marker"])


def leftovers(root: Path) -> list[str]:
    """Return what is in the release folder and is neither a release nor known, after a push that went well."""
    known = {"store", "partial", "releases", "bin", "starts", "current", "previous"}
    known |= {"state.json", "log", "lock.guard", "lock.token", "trust.json", "trust.pinned"}
    strange = sorted({entry.name for entry in root.iterdir()} - known)
    strange += [f"partial/{entry.name}" for entry in (root / "partial").iterdir()]
    strange += [f"releases/{entry.name}" for entry in (root / "releases").iterdir() if len(entry.name) != 16]
    linked = {entry.stat().st_ino for entry in (root / "releases").rglob("*") if entry.is_file()}
    strange += [
        str(entry) for entry in (root / "store").rglob("*") if entry.is_file() and entry.stat().st_ino not in linked
    ]
    return strange
