from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeawq.deploy.receiver import description
from edgeawq.deploy.receiver.description import check_path, name_content, parse_release, release_id
from edgeawq.deploy.receiver.limits import MAX_CHUNK_BYTES
from edgeawq.deploy.receiver.refusal import Refusal
from tests.deploy.receiver.driver import PYTHON, Wire, cut, describe, sha

BAD_PATHS = [
    "",
    "/etc/passwd",
    "bundle",
    "site",
    "other/x",
    "../x",
    "bundle/../x",
    "bundle/./x",
    "bundle//x",
    "bundle/",
    "/bundle/x",
    "bundle\\..\\x",
    "bundle/x\0y",
    "bundle/x\ny",
    "bundle/\u202ex",
    "bundle/\ud800",
    "bundle/" + "x" * 256,
    "bundle/" + "x/" * 600 + "y",
    None,
    7,
    ["bundle/x"],
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_refuses_paths(path: object) -> None:
    release = describe(site__a=b"x")
    release["files"][0]["path"] = path
    with pytest.raises(Refusal) as caught:
        parse_release(json.dumps(release).encode())
    assert caught.value.code == "manifest"


def test_a_refused_description_does_not_end_the_session(wire: Wire, root: Path) -> None:
    release = describe(site__a=b"x")
    release["files"][0]["path"] = "../x"
    answer = wire.plan(release)
    assert (answer["ok"], answer["code"]) == (False, "manifest")
    assert wire.ask("status")["ok"] and not root.exists()


@given(st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "", "a", "bundle", "site", "~"])).map("/".join))
def test_a_path_that_is_accepted_stays_inside(path: str) -> None:
    try:
        accepted = check_path(path)
    except Refusal:
        return
    base = "/device/releases/0123456789abcdef"
    assert os.path.normpath(os.path.join(base, accepted)) == f"{base}/{accepted}"
    assert accepted.split("/")[0] in ("bundle", "site")


def edit(change: str, value: Any) -> dict[str, Any]:
    """A good release with one value changed; KeyError takes it out."""
    release = describe(site__a=b"x", bundle__b=os.urandom(250_000), chunked=("bundle__b",))
    target: Any = release
    *parents, last = change.split(".")
    for name in parents:
        target = target[int(name)] if name.isdigit() else target[name]
    key: Any = int(last) if last.isdigit() else last
    if value is KeyError:
        del target[key]
    else:
        target[key] = value
    return release


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("format", "edgeawq-bundle"),
        ("format_version", 1),
        ("format_version", 3),
        ("format_version", True),
        ("format_version", KeyError),
        ("name", None),
        ("name", "x" * 201),
        ("name", "a\x1b[31m"),
        ("profile", ["x"]),
        ("requires", "aarch64"),
        ("requires", {}),
        ("requires.python", 3),
        ("files", []),
        ("files", {"0": {}}),
        ("files.0", "site/a"),
        ("files.0.sha256", "x" * 64),
        ("files.0.sha256", "A" * 64),
        ("files.0.sha256", "../../" + "0" * 58),
        ("files.0.sha256", "0" * 64 + "\n"),
        ("files.0.sha256", KeyError),
        ("files.0.size", -1),
        ("files.0.size", 1.0),
        ("files.0.size", True),
        ("files.0.size", MAX_CHUNK_BYTES + 1),  # such a file must be cut
        ("files.0.path", "bundle/b"),  # twice
        ("files.0.path", "bundle/b/c"),  # below a file
        ("files.1.chunks", []),
        ("files.1.chunks", {}),
        ("files.1.chunks", [[1, "0" * 64]]),  # one chunk is written as size and sha256
        ("files.1.chunks.0", [1, "0" * 64, 1]),
        ("files.1.chunks.0", "x"),
        ("files.1.chunks.0", None),
        ("files.1.chunks.0.0", 0),
        ("files.1.chunks.0.0", -5),
        ("files.1.chunks.0.0", MAX_CHUNK_BYTES + 1),
        ("files.1.chunks.0.1", "0" * 63),
        ("files.1.chunks.0.1", 5),
    ],
)
def test_refuses_descriptions(change: str, value: Any) -> None:
    assert parse_release(json.dumps(edit("name", "tiny")).encode()).files[1].size == 250_000
    with pytest.raises(Refusal) as caught:
        parse_release(json.dumps(edit(change, value)).encode())
    assert caught.value.code == "manifest"


def test_refuses_one_hash_with_two_sizes() -> None:
    release = describe(site__a=b"x", site__b=b"y")
    release["files"][0].update(sha256=sha(b"y"), size=5)
    with pytest.raises(Refusal, match="two sizes"):
        parse_release(json.dumps(release).encode())


JUNK = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=5)


@given(JUNK)
@settings(max_examples=60)
def test_a_fuzzed_description_is_refused_and_never_crashes(value: Any) -> None:
    for key in ("format", "format_version", "name", "profile", "requires", "files"):
        release = {**describe(site__a=b"x"), key: value}
        try:
            parse_release(json.dumps(release).encode())
        except Refusal as refusal:
            assert refusal.code == "manifest"
        else:
            assert key in ("name", "profile") and isinstance(value, str), (key, value)
    for key in ("path", "sha256", "size", "chunks"):
        release = copy.deepcopy(describe(site__a=b"x"))
        release["files"][0][key] = value
        try:
            parse_release(json.dumps(release).encode())
        except Refusal as refusal:
            assert refusal.code == "manifest"
        else:
            assert key == "size" and 0 <= value <= MAX_CHUNK_BYTES


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"null", b"1", b'"x"'])
def test_refuses_what_is_no_description_at_all(data: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        parse_release(data)
    assert caught.value.code == "manifest"


def test_refuses_more_than_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.dumps(describe(site__a=b"x", site__b=b"yyy")).encode()
    for name, limit, message in (
        ("MAX_FILES", 1, "more than 1"),
        ("MAX_CHUNKS", 1, "more than 1 chunks"),
        ("MAX_FILE_BYTES", 2, "too large"),
        ("MAX_TOTAL_BYTES", 3, "larger than 3 bytes"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(description, name, limit)
            with pytest.raises(Refusal, match=message):
                parse_release(data)
    assert parse_release(data).total_bytes == 4


@pytest.mark.parametrize(
    ("requires", "what"),
    [({"machine": "riscv64", "python": PYTHON}, "riscv64"), ({"machine": platform.machine(), "python": "3.9"}, "3.9")],
)
def test_refuses_what_does_not_fit_this_machine(requires: dict[str, str], what: str, wire: Wire) -> None:
    answer = wire.plan({**describe(site__a=b"x"), "requires": requires})
    assert answer["code"] == "unfit" and what in answer["what"]


def test_names_content_by_all_of_its_chunks() -> None:
    data = os.urandom(250_000)
    chunks = tuple((int(length), str(digest)) for length, digest in cut(data))
    name = name_content(chunks)
    assert name_content(chunks[:1]) == sha(data[:100_000])
    others = [chunks[::-1], chunks[:2], (*chunks, chunks[0]), ((chunks[0][0] + 1, chunks[0][1]), *chunks[1:])]
    assert len({name, *map(name_content, others)}) == 5 and all(len(name_content(other)) == 64 for other in others)


def test_release_names_are_those_of_the_host() -> None:
    from edgeawq.deploy.release import describe_release

    release = describe_release(name="n", profile="p", machine=platform.machine(), python=PYTHON, files=[])
    assert release.identity == release_id(release.data) == hashlib.sha256(release.data).hexdigest()[:16]
