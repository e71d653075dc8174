from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeawq.deploy.receiver.files import free_bytes, is_count, is_text, read_bytes, read_json, write_all, write_file


def test_writes_a_file_wholly_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(str(path), b"old", 0o755)
    assert path.read_bytes() == b"old" and path.stat().st_mode & 0o777 == 0o755
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), real_fsync(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), real_replace(*names))[1])
    write_file(str(path), b"new")
    assert calls == ["fsync", "replace", "fsync"] and path.read_bytes() == b"new"
    monkeypatch.setattr(os, "fsync", lambda descriptor: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        write_file(str(path), b"newer")
    assert path.read_bytes() == b"new"


def test_does_not_write_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("precious")
    (tmp_path / "file.new").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError):
        write_file(str(tmp_path / "file"), b"x")
    (tmp_path / "other").symlink_to(tmp_path / "outside")
    write_file(str(tmp_path / "other"), b"x")
    assert (tmp_path / "outside").read_text() == "precious" and not (tmp_path / "other").is_symlink()


def test_reads_no_more_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert read_bytes(str(path)) is None and read_json(str(path), 100) == {}
    path.write_bytes(b'{"a": 1}')
    assert read_bytes(str(path), 8) == b'{"a": 1}' and read_bytes(str(path), 7) is None
    assert read_json(str(path), 8) == {"a": 1} and read_json(str(path), 7) == {}
    for text in (b"[1]", b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(text)
        assert read_json(str(path), 1 << 20) == {}


def test_writes_all_at_an_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, block, offset: real(descriptor, block[:3], offset))
    with (tmp_path / "file").open("wb") as stream:
        write_all(stream.fileno(), memoryview(b"0123456789"), 5)
    assert (tmp_path / "file").read_bytes() == bytes(5) + b"0123456789"


def test_room_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(str(tmp_path / "a/b/c")) > 0


@pytest.mark.parametrize("value", [-1, 11, 1.0, True, "1", None, [1]])
def test_what_is_no_count(value: object) -> None:
    assert not is_count(value, 10) and is_count(10, 10) and is_count(0, 10)


@pytest.mark.parametrize("value", ["x" * 11, "ä" * 6, "a\nb", "\0", None, 3, b"x"])
def test_what_is_no_text(value: object) -> None:
    assert not is_text(value, 10) and is_text("x" * 10, 10) and is_text("", 10)
