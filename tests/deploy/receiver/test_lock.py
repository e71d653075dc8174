from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edgeawq.deploy.receiver.lock import Lock, boot_id, process_start
from edgeawq.deploy.receiver.refusal import Refusal
from tests.deploy.receiver.driver import Wire, describe, describe_answering


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_one_owner_at_a_time_and_a_growing_token(folder: Path) -> None:
    first, second = Lock(str(folder)), Lock(str(folder))
    assert first.describe() is None and first.take("one@a", force=False, wait_s=0) is None
    with pytest.raises(Refusal) as caught:
        second.take("two@b", force=False, wait_s=0)
    assert caught.value.code == "locked" and caught.value.details["lock"]["owner"] == "one@a"
    first.release()
    assert second.take("two@b", force=False, wait_s=0) is None and second.token == first.token + 2 == 2
    second.release()
    assert first.describe() is None and not (folder / "lock").exists()


def test_waits_for_an_owner_who_is_about_to_end(folder: Path) -> None:
    first, second = Lock(str(folder)), Lock(str(folder))
    first.take("one", force=False, wait_s=0)
    threading.Timer(0.3, first.release).start()
    assert second.take("two", force=False, wait_s=20) is None
    second.release()


def test_a_broken_lock_fences_its_former_owner(folder: Path) -> None:
    first, second = Lock(str(folder)), Lock(str(folder))
    first.take("one", force=False, wait_s=0)
    replaced = second.take("two", force=True, wait_s=0)
    assert replaced is not None and replaced["owner"] == "one" and replaced["alive"]
    with pytest.raises(Refusal, match="lost the device lock"), first.held():
        pass
    first.release()
    with second.held():
        assert second.describe() is not None, "the former owner's release must not take it away"
    second.release()


def test_nobody_takes_the_lock_while_it_is_held_for_a_step(folder: Path) -> None:
    first, second = Lock(str(folder)), Lock(str(folder))
    first.take("one", force=False, wait_s=0)
    seen: list[str] = []

    def take() -> None:
        second.take("two", force=True, wait_s=0)
        seen.append("taken")

    thread = threading.Thread(target=take)
    with first.held():
        with first.guard():  # a step may have steps
            thread.start()
        time.sleep(0.2)
        assert seen == []
    thread.join(20)
    assert seen == ["taken"]


@pytest.mark.parametrize("change", [{"pid": 2**22 + 5}, {"pid_start": "1"}, {"boot_id": "another boot"}, {"pid": "x"}])
def test_the_lock_of_a_dead_process_is_stale(folder: Path, change: dict[str, Any]) -> None:
    Lock(str(folder)).take("one", force=False, wait_s=0)
    owner = json.loads((folder / "lock/owner.json").read_text())
    assert owner["pid"] == os.getpid() and owner["pid_start"] and owner["boot_id"]
    (folder / "lock/owner.json").write_text(json.dumps({**owner, **change}))
    second = Lock(str(folder))
    replaced = second.take("two", force=False, wait_s=0)
    assert replaced is not None and not replaced["alive"] and replaced["owner"] == "one"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"time": "x"}', '{"time": [1], "pid": 1}', '{"pid": -1, "owner": {"a": 1}}', '{"time": NaN}'],
)
def test_a_damaged_owner_file_is_a_stale_lock(folder: Path, text: str) -> None:
    (folder / "lock").mkdir()
    (folder / "lock/owner.json").write_text(text)
    lock = Lock(str(folder))
    replaced = lock.take("me", force=False, wait_s=0)
    assert replaced is not None and not replaced["alive"]
    json.dumps(replaced)
    with lock.held():
        pass


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"token": "x"}', '{"token": -4}', '{"token": 1e400}', '{"token": [1]}']
)
def test_a_damaged_token_file_begins_anew(folder: Path, text: str) -> None:
    (folder / "lock.token").write_text(text)
    lock = Lock(str(folder))
    lock.take("me", force=False, wait_s=0)
    assert lock.token == 1


def test_processes_are_told_apart_by_when_they_began() -> None:
    assert process_start(os.getpid()) == process_start(os.getpid()) != ""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_start(child.pid) not in ("", process_start(os.getpid()))
    child.communicate(b"\n")
    assert process_start(child.pid) == "" and len(boot_id()) == 36


def test_a_session_whose_lock_was_broken_changes_nothing_more(wire: Wire, root: Path) -> None:
    release, contents = describe_answering()
    wire.put_all(contents, wire.begin(release))
    first = wire.ask("commit")["id"]
    assert wire.ask("check", release=first, timeout_s=60)["ok"]
    other = Wire(root)
    assert other.ask("lock", owner="other")["code"] == "locked"
    assert other.ask("lock", owner="other", force=True)["replaced"]["owner"] == "me"
    assert wire.ask("switch", release=first)["code"] == "lock-lost"
    assert wire.ask("gc", keep=1)["code"] == "lock-lost"
    assert wire.ask("pin", keys=[])["code"] == "lock-lost"
    assert wire.plan(describe(site__a=b"a"))["ok"]
    assert wire.ask("assemble")["missing"] == [[0]]
    wire.put(0, b"a")
    assert wire.ask("commit")["code"] == "lock-lost"
    assert not (root / "current").exists() and wire.end() == 0 and (root / "lock").exists()
    assert other.ask("gc", keep=1)["ok"] and other.end() == 0 and not (root / "lock").exists()
    assert "lock-broken" in (root / "log").read_text()
