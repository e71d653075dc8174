"""The host's audit log."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import stat
import threading
from pathlib import Path

import pytest

from edgeawq.deploy import audit
from edgeawq.deploy.audit import append_entry, find_audit_log, read_entries, record_operation
from edgeawq.errors import DeployError, HealthCheckError


@pytest.fixture(autouse=True)
def log(isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of this test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(isolated_home / "state"))
    return isolated_home / "state" / "edgeawq" / "audit.jsonl"


def test_where_the_log_is(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_audit_log() == log
    monkeypatch.delenv("XDG_STATE_HOME")
    assert find_audit_log() == Path.home() / ".local" / "state" / "edgeawq" / "audit.jsonl"


def test_what_went_well_what_failed_and_what_was_interrupted(log: Path) -> None:
    with record_operation("push", "pi4", source="tiny") as facts:
        facts["release"] = "0123456789abcdef"
    with pytest.raises(HealthCheckError), record_operation("push", "pi5"):
        raise HealthCheckError("it does not answer")
    with pytest.raises(ZeroDivisionError), record_operation("gc", "pi5"):
        _ = 1 // 0
    with pytest.raises(KeyboardInterrupt), record_operation("rollback", "pi4"):
        raise KeyboardInterrupt
    good, bad, broken, cut = read_entries(10)
    assert (good["op"], good["device"], good["release"], good["outcome"]) == ("push", "pi4", "0123456789abcdef", "ok")
    assert good["source"] == "tiny" and "@" in good["user"] and good["time"] > 1.7e9 and good["seconds"] >= 0
    assert (bad["outcome"], bad["error"], bad["what"]) == ("failed", "HealthCheckError", "it does not answer")
    assert (broken["outcome"], broken["error"]) == ("failed", "ZeroDivisionError")
    assert (cut["op"], cut["outcome"]) == ("rollback", "interrupted")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600 and len(log.read_bytes().splitlines()) == 4


def test_a_log_that_cannot_be_written_stops_nothing(log: Path) -> None:
    notes: list[str] = []
    log.parent.parent.mkdir(exist_ok=True)
    log.parent.write_text("a file where the folder should be")
    with record_operation("push", "pi4", on_note=notes.append) as facts:
        facts["release"] = "x"
    assert len(notes) == 1 and "could not be written" in notes[0]
    with pytest.raises(HealthCheckError), record_operation("push", "pi4", on_note=notes.append):
        raise HealthCheckError("the failure that counts")
    assert len(notes) == 2


def test_a_full_disk_is_a_note(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert append_entry({"op": "push"}) is None

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit.os, "fsync", fail)
    assert "No space left" in str(append_entry({"op": "push"}))


def test_a_link_is_not_followed(log: Path, tmp_path: Path) -> None:
    log.parent.mkdir(parents=True)
    (tmp_path / "victim").write_text("untouched")
    log.symlink_to(tmp_path / "victim")
    assert append_entry({"op": "push"}) is not None
    assert (tmp_path / "victim").read_text() == "untouched"


def test_values_of_any_kind_and_length(log: Path) -> None:
    hostile = "line\nbreak \x1b[31m " + "x" * 10_000
    assert append_entry({"op": "push", "what": hostile, "path": Path("/x"), "bad": "\ud800"}) is None
    assert len(log.read_bytes()) < 2000 and log.read_bytes().count(b"\n") == 1
    (entry,) = read_entries(1)
    assert entry["what"].startswith("line\nbreak") and entry["what"].endswith("…") and entry["path"] == "/x"
    assert "longer than" in str(append_entry({"op": "push", "files": ["name"] * 20_000}))
    assert len(read_entries(10)) == 1


def test_damaged_lines_are_left_out_and_harm_no_others(log: Path) -> None:
    append_entry({"op": "one"})
    with log.open("ab") as stream:
        stream.write(b'{"op": "hal')  # a crash in the middle of a line
    append_entry({"op": "two"})
    with log.open("ab") as stream:
        stream.write(b"[1]\n\xff\xfe\n" + b"[" * 5000 + b"\n")
    append_entry({"op": "three"})
    assert [entry["op"] for entry in read_entries(10)] == ["one", "two", "three"]
    assert [entry["op"] for entry in read_entries(2)] == ["two", "three"]
    assert read_entries(0) == []


def test_rotates_and_still_shows_what_was_before(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_LOG_BYTES", 2000)
    for number in range(100):
        append_entry({"op": "push", "number": number})
    assert log.stat().st_size < 2100 and log.with_name("audit.jsonl.1").stat().st_size < 2100
    assert sorted(os.listdir(log.parent)) == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.lock"]
    numbers = [entry["number"] for entry in read_entries(60)]
    assert numbers == list(range(40, 100))


def _append_many(start: int) -> None:
    audit.MAX_LOG_BYTES = 20_000
    for number in range(start, start + 50):
        assert append_entry({"op": "push", "number": number, "fill": "x" * 100}) is None


def test_several_processes_at_once_lose_no_line(log: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(1000 * index,)) for index in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    numbers = [entry["number"] for entry in read_entries(1000)]
    assert sorted(numbers) == [1000 * index + number for index in range(3) for number in range(50)]


def test_waits_for_another_process_that_may_be_rotating(log: Path) -> None:
    assert append_entry({"op": "one"}) is None
    with log.with_name("audit.jsonl.lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        thread = threading.Thread(target=append_entry, args=({"op": "two"},))
        thread.start()
        thread.join(0.3)
        assert len(read_entries(10)) == 1
    thread.join()
    assert [entry["op"] for entry in read_entries(10)] == ["one", "two"]


def test_a_log_that_cannot_be_read_is_an_error(log: Path) -> None:
    log.mkdir(parents=True)
    with pytest.raises(DeployError, match="cannot be read"):
        read_entries(5)


def test_a_user_without_a_name(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise OSError("no such user")

    monkeypatch.setattr(audit.getpass, "getuser", fail)
    with record_operation("push", "pi4"):
        pass
    assert read_entries(1)[0]["user"].startswith(f"{os.getuid()}@") and json.loads(log.read_bytes())


def test_reading_an_empty_log() -> None:
    assert read_entries(10) == []
