from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeawq.deploy.receiver import releases
from edgeawq.deploy.receiver.home import Home
from edgeawq.deploy.receiver.refusal import Refusal
from edgeawq.deploy.receiver.releases import index_chunks, list_releases, running_releases
from tests.deploy.receiver.driver import CHUNK, Wire, cut, describe, describe_answering, install, sha, store_name


def test_commit_refuses_an_incomplete_release(wire: Wire, root: Path) -> None:
    wire.begin(describe(site__a=b"a", site__b=b"b"))
    wire.put(0, b"a")
    answer = wire.ask("commit")
    assert answer["code"] == "incomplete" and "site/b" in answer["what"]
    assert list((root / "releases").iterdir()) == []


def test_commit_makes_an_immutable_folder_with_its_description(wire: Wire, root: Path) -> None:
    data = os.urandom(3 * CHUNK)
    release = describe(bundle__deep__er__w=data, site__a=b"", chunked=("bundle__deep__er__w",))
    wire.put_all([data, b""], wire.begin(release))
    answer = wire.ask("commit")
    folder = root / "releases" / answer["id"]
    assert answer["new"] and sha((folder / "release.json").read_bytes())[:16] == answer["id"]
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "release.json",
        "bundle/deep/er/w",
        "site/a",
    }
    assert wire.ask("verify", release=answer["id"]) == {"ok": True, "damaged": [], "count": 0}


DAMAGES = ["flipped", "shorter", "longer", "gone", "folder", "symlink"]


def damage_file(path: Path, damage: str) -> None:
    data = path.read_bytes()
    if damage in ("gone", "folder", "symlink"):
        path.unlink()
    if damage == "folder":
        path.mkdir()
        (path / "x").write_text("")
    elif damage == "symlink":
        path.symlink_to("/etc/hostname")
    elif damage == "flipped":
        path.chmod(0o644)
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 0x80]))
    elif damage == "shorter":
        path.chmod(0o644)
        path.write_bytes(data[:-1])
    elif damage == "longer":
        path.chmod(0o644)
        path.write_bytes(data + b"x")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("where", ["release", "store"])
@pytest.mark.parametrize("chunked", [True, False])
def test_damage_is_found_and_repaired(damage: str, where: str, chunked: bool, wire: Wire, root: Path) -> None:
    data = os.urandom(2 * CHUNK)
    release = describe(bundle__w=data, site__a=b"a", chunked=("bundle__w",) if chunked else ())
    wire.put_all([data, b"a"], wire.begin(release))
    identity = wire.ask("commit")["id"]
    name = store_name(data) if chunked else sha(data)
    linked = root / "releases" / identity / "bundle/w"
    path = linked if where == "release" else root / "store" / name[:2] / name
    separate = damage in ("gone", "folder", "symlink")
    damage_file(path, damage)
    damaged = wire.ask("verify", release=identity)["damaged"]
    assert damaged == ([] if where == "store" and separate else ["bundle/w"])
    assert wire.plan(release)["ok"]
    wire.put_all([data, b"a"], wire.ask("assemble")["missing"])
    answer = wire.ask("commit")
    assert answer["ok"] and answer["repaired"] in (["bundle/w"], []), answer
    assert wire.ask("verify", release=identity)["damaged"] == [] and linked.read_bytes() == data
    assert wire.ask("gc", keep=1)["ok"] and (root / "store" / name[:2] / name).samefile(linked)


def test_a_damaged_description_is_written_again(wire: Wire, root: Path) -> None:
    release = describe(site__a=b"a")
    wire.put_all([b"a"], wire.begin(release))
    identity = wire.ask("commit")["id"]
    for text in ("{}", ""):
        (root / "releases" / identity / "release.json").write_text(text)
        assert wire.ask("verify", release=identity)["code"] == "damaged"
        assert "damaged" in wire.ask("status")["releases"][0]
        assert wire.plan(release)["ok"] and wire.ask("commit")["ok"]
        assert wire.ask("verify", release=identity)["damaged"] == []


def test_gc_keeps_current_previous_and_the_newest(wire: Wire, root: Path) -> None:
    made = []
    wire.ask("lock", owner="me")
    for number in range(6):
        release, contents = describe_answering(bundle__w=os.urandom(100 + number))
        assert wire.plan(release)["ok"]
        wire.put_all(contents, wire.ask("assemble")["missing"])
        made.append(wire.ask("commit")["id"])
        if number in (0, 2):
            assert wire.ask("check", release=made[-1], timeout_s=60)["ok"]
            assert wire.ask("switch", release=made[-1])["ok"]
    answer = wire.ask("gc", keep=3)
    assert sorted(os.listdir(root / "releases")) == sorted([made[0], made[2], made[5]])
    assert sorted(answer["removed"]) == sorted([made[1], made[3], made[4]]) and answer["freed"] > 0
    assert wire.ask("gc", keep=1)["removed"] == [made[5]]
    linked = {path.stat().st_ino for path in (root / "releases").rglob("*") if path.is_file()}
    assert {path.stat().st_ino for path in (root / "store").rglob("*") if path.is_file()} <= linked
    assert set(wire.ask("status")["releases"][0]) >= {"id", "bytes", "sequence", "requires"}


def test_gc_copes_with_what_has_no_business_there(wire: Wire, root: Path) -> None:
    identity = install(root)
    (root / "store" / "file").write_text("")
    (root / "store" / "aa").mkdir(exist_ok=True)
    (root / "store" / "aa" / "folder").mkdir()
    for name in ("folder", "1" * 64):
        (root / "partial" / name).mkdir()
    assert wire.ask("lock", owner="me")["ok"] and list((root / "partial").iterdir()) == []
    (root / "partial" / ("0" * 64)).mkdir()
    assert wire.ask("gc", keep=1)["ok"]
    assert not (root / "store/aa/folder").exists() and not (root / "partial" / ("0" * 64)).exists()
    assert wire.ask("verify", release=identity)["damaged"] == []


def test_a_release_that_is_running_is_not_removed(wire: Wire, root: Path) -> None:
    first = install(root)
    environment = {**os.environ, "PYTHONPATH": str(root / "releases" / first / "site")}
    program = [sys.executable, "-c", "print('here', flush=True); input()"]
    child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    try:
        assert child.stdout is not None
        child.stdout.readline()  # its environment is not there to be read at once
        assert first in running_releases(Home(str(root)))
        install(root)
        install(root)
        wire.ask("lock", owner="me")
        assert wire.ask("gc", keep=1)["removed"] == []
    finally:
        child.communicate(b"\n")
    assert wire.ask("gc", keep=1)["removed"] == [first]


def test_finds_the_chunks_of_all_releases(wire: Wire, root: Path) -> None:
    data = os.urandom(2 * CHUNK + 3)
    wire.put_all([data, b"a"], wire.begin(describe(bundle__w=data, site__a=b"a", chunked=("bundle__w",))))
    wire.ask("commit")
    home = Home(str(root))
    path = home.object_path(store_name(data))
    assert index_chunks(home) == {
        digest: (path, offset) for (_, digest), offset in zip(cut(data), (0, CHUNK, 2 * CHUNK), strict=True)
    }
    identity = list_releases(home)[0]
    (root / "releases" / identity / "release.json").write_text("{}")
    assert index_chunks(home) == {}


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_links_is_named(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise OSError(number, "not possible")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(Refusal) as caught:
        releases._link(str(tmp_path / "a"), str(tmp_path / "b"))
    assert caught.value.code == "no-links"


def test_a_file_that_has_all_the_links_it_may_have_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise OSError(errno.EMLINK, "Too many links")

    monkeypatch.setattr(os, "link", fail)
    (tmp_path / "a").write_text("content")
    releases._link(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_text() == "content" and not (tmp_path / "b").samefile(tmp_path / "a")
