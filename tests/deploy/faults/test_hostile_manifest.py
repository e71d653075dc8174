"""A hostile description of a release: fuzzed, and by name."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeawq.deploy.receiver.description import parse_release
from edgeawq.deploy.receiver.limits import MAX_FILES
from edgeawq.deploy.receiver.refusal import Refusal
from tests.deploy.faults.harness import ALL, Stage, case
from tests.deploy.invariants import answer
from tests.deploy.receiver.driver import Wire, describe, sha

NASTY = [
    "/etc/passwd",
    "bundle/../../../etc/cron.d/x",
    "bundle/..",
    "site/./x",
    "~/x",
    "bundle/x\0",
    "bundle/\u202egnp.x",
    "bundle/\uff0e\uff0e/x",
    "bundle\u2215x",
    "bundle/a\u0301",
    "site/" + "x" * 4000,
    "site/" + "/".join(["x"] * 600),
    "release.json",
    "signature.json",
    "site/edgeawq/__main__.py/x",
    "",
    -1,
    0,
    1.5,
    1 << 64,
    True,
    None,
    [],
    {},
    [[]],
    "\ud800",
    float("inf"),
]
JUNK = st.sampled_from(NASTY) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def list_places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [place]
    if isinstance(value, dict):
        for name, inner in value.items():
            found += list_places(inner, (*place, name))
    if isinstance(value, list):
        for number, inner in enumerate(value):
            found += list_places(inner, (*place, number))
    return found


DATA = os.urandom(250_000)
GOOD = describe(site__a=b"x", bundle__w=DATA, site__empty=b"", chunked=("bundle__w",))
PLACES = [place for place in list_places(GOOD) if place]


def change(release: dict[str, Any], place: tuple[Any, ...], action: str, junk: Any) -> None:
    """Replace, remove or double what is at a place, where that still exists."""
    target: Any = release
    try:
        for name in place[:-1]:
            target = target[name]
        if action == "replace":
            target[place[-1]] = junk
        elif action == "remove":
            del target[place[-1]]
        elif isinstance(target, list):
            target.insert(place[-1], copy.deepcopy(target[place[-1]]))
        else:
            target[str(junk)[:50]] = copy.deepcopy(target[place[-1]])
    except (KeyError, IndexError, TypeError):
        return


CHANGES = st.lists(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(["replace", "remove", "double"]), JUNK), min_size=1, max_size=4
)


@given(CHANGES)
@settings(max_examples=2000 if ALL else 300, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_fuzzed_description(changes: list[tuple[tuple[Any, ...], str, Any]]) -> None:
    """It is refused as a bad manifest, or it means something harmless: nothing else may come out."""
    with case("hostile manifest, fuzzed", "refused, or every path inside bundle/ or site/ and every size in bounds"):
        release = copy.deepcopy(GOOD)
        for place, action, junk in changes:
            change(release, place, action, junk)
        try:
            found = parse_release(json.dumps(release).encode("utf-8", "surrogatepass"))
        except Refusal as refusal:
            assert refusal.code == "manifest"
            return
        paths = [file.path for file in found.files]
        assert len(set(paths)) == len(paths)
        for file in found.files:
            parts = file.path.split("/")
            assert parts[0] in ("bundle", "site") and len(parts) > 1 and not {"", ".", ".."} & set(parts)
            assert file.size == sum(length for length, _ in file.chunks) and file.size >= 0
            assert len(file.name) == 64 and set(file.name) <= set("0123456789abcdef")


@given(st.binary(max_size=300))
@settings(max_examples=2000 if ALL else 300, deadline=None)
def test_any_bytes(data: bytes) -> None:
    with case("hostile manifest, any bytes", "refused"), pytest.raises(Refusal):
        parse_release(data)


def huge(count: int) -> dict[str, Any]:
    file = {"size": 0, "sha256": sha(b"")}
    return {**describe(site__a=b"x"), "files": [{**file, "path": f"site/{number}"} for number in range(count)]}


def with_path(path: Any) -> dict[str, Any]:
    release = describe(site__a=b"x")
    release["files"][0]["path"] = path
    return release


HARMLESS = {7, 8, 9, 14}  # odd, but inside: the fuzzed test says what holds for them

HOSTILE: dict[str, Any] = {
    **{f"path {number}": with_path(path) for number, path in enumerate(NASTY[:17]) if number not in HARMLESS},
    "too many files": huge(MAX_FILES + 1),
    "a path twice": {**GOOD, "files": [GOOD["files"][0]] * 2},
    "a file that is a folder": {
        **GOOD,
        "files": [{**GOOD["files"][0], "path": path} for path in ("site/a", "site/a/b")],
    },
    "one hash with two sizes": {**GOOD, "files": [GOOD["files"][0], {**GOOD["files"][0], "path": "site/b", "size": 2}]},
    "a huge size": {**GOOD, "files": [{**GOOD["files"][0], "size": 1 << 62}]},
    "deep nesting": b'{"files":' * 50_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_description_over_the_wire(stage: Stage, name: str) -> None:
    with case("hostile manifest over the wire", "refused; the session goes on; nothing is written; old answers"):
        root = stage.fresh()
        before = sorted(str(path) for path in root.rglob("*"))
        wire = Wire(root)
        try:
            refused = wire.plan(HOSTILE[name])
            assert refused["ok"] is False and refused["code"] == "manifest", refused
            assert wire.ask("status")["ok"] and wire.end() == 0 and wire.stderr == ""
        finally:
            wire.kill()
        assert answer(root) == "old"
        after = sorted(str(path) for path in root.rglob("*") if "__pycache__" not in path.parts)
        assert after == [path for path in before if "__pycache__" not in path]


@pytest.mark.parametrize("folder", ["store", "partial", "releases", "bin", "starts"])
def test_symlinks_planted_on_the_device(stage: Stage, tmp_path: Path, folder: str) -> None:
    with case("hostile manifest: symlinks on the device", "nothing outside the folder is written"):
        root = stage.fresh()
        outside = tmp_path / "outside"
        outside.mkdir()
        (root / folder).rename(tmp_path / "moved")
        (root / folder).symlink_to(outside)
        wire = Wire(root)
        try:
            assert wire.ask("lock", owner="me")["code"] == "layout"
        finally:
            wire.kill()
        assert list(outside.iterdir()) == []
        (root / folder).unlink()
        (tmp_path / "moved").rename(root / folder)
        stage.check_and_complete(root, ("old",))


def test_names_that_look_alike_are_different_files(stage: Stage) -> None:
    """Unicode: what prints may be in a name; two names that only look the same stay two files."""
    with case("hostile manifest: unicode", "stored under exactly the names that were given"):
        contents = [b"1", b"2", b"3"]
        names = ["site/\u00e9", "site/e\u0301", "site/\uff0e\uff0e"]
        files = [{"path": name, "size": 1, "sha256": sha(data)} for name, data in zip(names, contents, strict=True)]
        root = stage.fresh()
        wire = Wire(root)
        try:
            wire.put_all(contents, wire.begin({**describe(site__a=b"x"), "files": files}))
            identity = wire.ask("commit")["id"]
        finally:
            wire.kill()
        for name, data in zip(names, contents, strict=True):
            assert (root / "releases" / identity / name).read_bytes() == data
