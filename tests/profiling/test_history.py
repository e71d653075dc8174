from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeawq.errors import ProfileError
from edgeawq.profiling.history import MAX_KEPT, load_history, profile_folder, read_profile, store_profile
from tests.profiling.example import make_profile


def at(minute: int) -> str:
    return f"2026-01-31T{12 + minute // 60}:{minute % 60:02}:00Z"


def test_what_is_kept_comes_back_oldest_first(tmp_path: Path) -> None:
    folder = profile_folder(tmp_path, "pi4")
    later, earlier = make_profile(created=at(9)), make_profile(created=at(1))
    for profile in (later, earlier, later):
        file = store_profile(folder, profile)
        assert read_profile(file) == profile
    assert load_history(folder) == (earlier, later)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json"]


def test_the_oldest_go(tmp_path: Path) -> None:
    for minute in range(MAX_KEPT + 3):
        store_profile(tmp_path, make_profile(created=at(minute), model=False))
    history = load_history(tmp_path)
    assert len(history) == MAX_KEPT
    assert history[0].created == at(3) and history[-1].created == at(MAX_KEPT + 2)


def test_a_damaged_file_is_left_out(tmp_path: Path) -> None:
    file = store_profile(tmp_path, make_profile())
    (tmp_path / "broken.json").write_text("{")
    assert len(load_history(tmp_path)) == 1
    file.write_bytes(file.read_bytes()[:-20])
    assert load_history(tmp_path) == ()
    with pytest.raises(ProfileError, match="JSON"):
        read_profile(file)


def test_no_folder_is_no_history(tmp_path: Path) -> None:
    assert load_history(tmp_path / "nothing") == ()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "x" * 80])
def test_a_device_is_not_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProfileError):
        profile_folder(tmp_path, name)


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProfileError, match="cannot be kept"):
        store_profile(tmp_path / "file", replace(make_profile()))
    with pytest.raises(ProfileError, match="cannot be read"):
        read_profile(tmp_path / "nothing.json")
