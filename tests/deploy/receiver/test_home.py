from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgeawq.deploy.receiver import home as home_module
from edgeawq.deploy.receiver.home import STORED_TIME, Home
from edgeawq.deploy.receiver.refusal import Refusal
from tests.deploy.receiver.driver import Wire, install, sha


@pytest.fixture
def home(root: Path) -> Home:
    home = Home(str(root))
    home.make_folders()
    return home


@pytest.mark.parametrize("name", ["store", "partial", "releases", "bin", "starts"])
def test_symlinks_and_files_do_not_stand_in_for_its_folders(name: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    root.mkdir()
    (root / name).symlink_to(tmp_path / "outside")
    wire = Wire(root)
    assert wire.ask("lock", owner="me")["code"] == "layout" and wire.end() == 0
    (root / name).unlink()
    (root / name).write_text("")
    with pytest.raises(Refusal, match="not a folder"):
        Home(str(root)).make_folders()
    assert list((tmp_path / "outside").iterdir()) == []


def test_removes_what_a_cut_operation_has_left(home: Home, root: Path) -> None:
    name = sha(b"large")
    for path in ("releases/0123456789abcdef", "releases/0123456789abcdef.7.tmp/site", "releases/f0.trash"):
        (root / path).mkdir(parents=True)
    (root / "partial" / name).write_text("")
    (root / "partial" / f"{name}.7").write_text("")
    (root / "partial" / sha(b"link")).symlink_to("/dev/zero")
    home.remove_leftovers()
    assert os.listdir(root / "releases") == ["0123456789abcdef"] and os.listdir(root / "partial") == [name]


def test_what_is_known_about_releases(home: Home) -> None:
    home.owner = "me@here"
    home.remember("a" * 16, {"health": "bad", "reason": "it did not answer"})
    home.remember("b" * 16, {})
    home.remember("a" * 16, {"health": "good"}, event={"op": "switch", "to": "a" * 16})
    state = home.state()
    assert state["releases"]["a" * 16]["sequence"] == 3 and state["releases"]["b" * 16]["sequence"] == 2
    assert state["releases"]["a" * 16]["health"] == "good" and "reason" not in state["releases"]["a" * 16]
    assert [(event["op"], event["by"]) for event in state["history"]] == [("switch", "me@here")]
    home.forget(["a" * 16, "c" * 16])
    assert list(home.state()["releases"]) == ["b" * 16]


def test_the_history_is_bounded(home: Home) -> None:
    for number in range(home_module.MAX_HISTORY + 5):
        home.remember("a" * 16, {}, event={"n": number})
    history = home.state()["history"]
    assert len(history) == home_module.MAX_HISTORY and history[0]["n"] == 5


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[1]", '{"releases": [1], "history": {}}', '{"sequence": "x", "history": [1, null]}']
    + ['{"releases": {"%s": 5}}' % ("a" * 16), '{"releases": {"%s": {"sequence": [1], "trust": 7}}}' % ("a" * 16)]
    + ['{"sequence": 1e400}', "[" * 100_000],
)
def test_a_damaged_state_file_is_no_obstacle(text: str, wire: Wire, root: Path) -> None:
    identity = install(root)
    (root / "state.json").write_text(text.replace("a" * 16, identity))
    status = wire.ask("status")
    assert status["current"] == identity and all(isinstance(event, dict) for event in status["history"])
    wire.ask("lock", owner="me")
    assert wire.ask("plan", release=identity)["ok"]
    assert wire.ask("check", release=identity, timeout_s=60)["ok"]
    assert wire.ask("switch", release=identity)["ok"] and wire.ask("gc", keep=1)["removed"] == []
    assert json.loads((root / "state.json").read_text())["releases"][identity]["sequence"] >= 1


def test_the_log_is_cut_and_a_halved_line_is_skipped(home: Home, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_module, "MAX_LOG_BYTES", 1000)
    for number in range(50):
        home.note("event", n=number)
    with (root / "log").open("a") as stream:
        stream.write('{"event": "half')
    home.note("last")
    lines = home.read_log(5)
    assert [line.get("n") for line in lines] == [46, 47, 48, 49] or lines[-1]["event"] == "last"
    assert (root / "log").stat().st_size < 1500 and (root / "log.1").stat().st_size < 1500


def test_the_log_does_not_follow_a_symlink(home: Home, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("precious")
    (root / "log").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError):
        home.note("event")
    assert (tmp_path / "outside").read_text() == "precious"


def test_an_object_is_a_file_of_the_right_size_that_nobody_has_touched(home: Home, root: Path) -> None:
    name = sha(b"abc")
    path = Path(home.object_path(name))
    assert not home.has_object(name, 3)
    path.parent.mkdir()
    path.write_bytes(b"abc")
    assert not home.has_object(name, 3), "somebody has written to it"
    os.utime(path, (STORED_TIME, STORED_TIME))
    assert home.has_object(name, 3) and not home.has_object(name, 2)
    path.unlink()
    path.symlink_to(root / "log")
    assert not home.has_object(name, 3)
    path.unlink()
    path.mkdir()
    assert not home.has_object(name, path.stat().st_size)
