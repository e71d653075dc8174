from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgeawq.cli.gc import command
from edgeawq.deploy import cache
from edgeawq.deploy.cache import cache_folder, list_entries, prune_cache
from edgeawq.errors import UsageError

NOW = 2_000_000_000.0
DAY = 86400.0


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAWQ_CACHE", str(tmp_path / "cache"))


def keep(kind: str, name: str, age_days: float, size: int = 1000, *, is_folder: bool = True) -> Path:
    """Something in the cache that was used so long before NOW."""
    path = cache_folder(kind) / name
    time = NOW - age_days * DAY
    file = path / "inside" / "weights.bin" if is_folder else path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(size))
    for part in (file, file.parent, path) if is_folder else (file,):
        os.utime(part, (time, time))
    return path


def test_what_was_not_used_for_long_goes_and_the_rest_stays() -> None:
    old = [keep("bundles", "a", 40), keep("checkpoints", "b", 31), keep("kernels", "c.o", 99, is_folder=False)]
    new = [keep("bundles", "d", 29), keep("kernels", "e.o", 1, is_folder=False)]
    others = [keep("wheels", "cp311", 900), keep("profiles", "pi4", 900), keep("sites", "x", 900)]
    removed = prune_cache(30 * DAY, NOW)
    assert [entry.path for entry in removed] == [old[2], old[0], old[1]]  # the longest unused first
    assert [entry.size for entry in removed] == [1000] * 3
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in new + others)
    assert prune_cache(30 * DAY, NOW) == []


def test_work_that_goes_on_stays_and_what_a_dead_process_left_goes() -> None:
    dead = keep("bundles", ".a.xyz.working", 2)
    alive = keep("bundles", ".b.xyz.working", 2)
    (alive / "inside" / "now").touch()
    os.utime(alive / "inside" / "now", (NOW, NOW))
    assert [entry.path for entry in prune_cache(3650 * DAY, NOW)] == [dead]
    assert alive.exists()


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "file").write_text("kept")
    link = cache_folder("bundles") / "link"
    link.symlink_to(target)
    os.utime(link, (0, 0), follow_symlinks=False)
    prune_cache(DAY, NOW)
    assert not link.is_symlink() and (target / "file").read_text() == "kept"


def test_a_removal_that_was_interrupted_is_finished_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    keep("bundles", "a", 40)

    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache.shutil, "rmtree", interrupt)
        prune_cache(30 * DAY, NOW)
    (left,) = list_entries()
    assert left.is_unfinished
    prune_cache(30 * DAY, NOW)
    assert list_entries() == []


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(command, arguments, standalone_mode=False)


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)
    keep("bundles", "old", 40, 3_000_000)
    keep("bundles", "new", 1, 1_000_000)
    shown = run("--cache", "--unused-for", "2w")
    assert shown.exception is None
    assert "bundles/old, unused for 40 days" in shown.output
    assert "3.0 MB are free again" in shown.output and "1.0 MB of bundles" in shown.output
    assert json.loads(run("--cache", "--json").output) == {"removed": [], "freed": 0, "kept": 1_000_000}


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("pi4", "--cache"),
        ("--cache", "--unused-for", "soon"),
        ("pi4", "--unused-for", "2w"),
        ("--cache", "--keep", "3"),
        ("--cache", "--break-lock"),
    ],
)
def test_calls_that_make_no_sense(arguments: tuple[str, ...]) -> None:
    error = run(*arguments).exception
    assert isinstance(error, UsageError) and error.remedy
