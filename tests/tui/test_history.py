"""The history file: private, bounded, and no reason to fail."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from prompt_toolkit.history import FileHistory, InMemoryHistory

from edgeawq.tui import history
from edgeawq.tui.history import find_history_file, open_history


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert find_history_file() == tmp_path / "edgeawq" / "history"
    for unusable in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", unusable)
        monkeypatch.setenv("HOME", "/home/someone")
        assert find_history_file() == Path("/home/someone/.local/state/edgeawq/history")


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "edgeawq" / "history"
    kept = open_history(path)
    assert isinstance(kept, FileHistory)
    kept.append_string("a question\nof two lines")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(FileHistory(str(path)).load_history_strings()) == ["a question\nof two lines"]


def test_a_long_history_keeps_its_newer_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history"
    monkeypatch.setattr(history, "MAX_BYTES", 4000)
    kept = open_history(path)
    for index in range(200):
        kept.append_string(f"question {index}\nsecond line")
    shorter = list(open_history(path).load_history_strings())
    assert 10 < len(shorter) < 200
    assert shorter == [f"question {index}\nsecond line" for index in range(199, 199 - len(shorter), -1)]
    assert path.stat().st_size <= 4000
    assert [entry.name for entry in tmp_path.iterdir()] == ["history"]


def test_a_place_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert isinstance(open_history(tmp_path / "file" / "below" / "history"), InMemoryHistory)
