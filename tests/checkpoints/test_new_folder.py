from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeawq.checkpoints.new_folder import check_target, make_folder
from edgeawq.errors import CheckpointError, UsageError


def test_the_folder_appears_only_at_the_end(tmp_path):
    with make_folder(tmp_path / "new") as partial:
        (partial / "a").write_text("1")
        assert not (tmp_path / "new").exists()
        assert partial.parent == tmp_path
    assert (tmp_path / "new" / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["new"]


def test_a_failed_switch_puts_the_old_folder_back(tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "old").write_text("old")
    rename = Path.rename

    def fail_on_partial(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_partial)
    with pytest.raises(CheckpointError, match="Input/output error"), make_folder(tmp_path / "new"):
        pass
    assert (tmp_path / "new" / "old").read_text() == "old"
    assert os.listdir(tmp_path) == ["new"]


def test_leftovers_of_killed_runs_are_removed_and_others_kept(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kept = [f".new.partial-{os.getpid()}-abcd", ".other.partial-1-x", ".new.partial-x"]
    for name in (f".new.partial-{ended.pid}-abcd", *kept):
        (tmp_path / name).mkdir()
    with make_folder(tmp_path / "new"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted(["new", *kept])


def test_names_with_special_characters(tmp_path):
    with make_folder(tmp_path / "a[1] *b") as partial:
        (partial / "x").write_text("x")
    assert os.listdir(tmp_path) == ["a[1] *b"]


def test_a_parent_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be written"), make_folder(tmp_path / "file" / "new"):
        pass


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(UsageError, match="not a folder"):
        check_target(tmp_path / "link", overwrite=True, is_own=lambda _: True)
