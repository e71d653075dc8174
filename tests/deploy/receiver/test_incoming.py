from __future__ import annotations

import contextlib
import errno
import os
import random
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgeawq.deploy.receiver import incoming
from edgeawq.deploy.receiver.description import File, name_content
from edgeawq.deploy.receiver.home import Home
from edgeawq.deploy.receiver.incoming import Assembly, Incoming, inflate
from edgeawq.deploy.receiver.refusal import Refusal
from tests.deploy.receiver.driver import CHUNK, Wire, cut, describe, describe_answering, sha, store_name


def objects(root: Path) -> list[Path]:
    return [path for path in (root / "store").rglob("*") if path.is_file()]


def test_stores_what_was_planned(wire: Wire, root: Path) -> None:
    data = b"print('hello')\n"
    assert wire.begin(describe(site__a=data, bundle__b=data)) == [[0]], "the same content is asked for once"
    wire.put(0, data)
    assert wire.ask("flush")["missing"] == []
    committed = wire.ask("commit")
    release = root / "releases" / committed["id"]
    assert (release / "site/a").samefile(release / "bundle/b") and (release / "site/a").read_bytes() == data
    assert (release / "site/a").stat().st_mode & 0o222 == 0, "what is in the store is read-only"
    assert wire.ask("commit")["new"] is False


def test_stores_a_large_file_chunk_by_chunk_in_any_order(wire: Wire, root: Path) -> None:
    data = os.urandom(4 * CHUNK + 17)
    assert wire.begin(describe(bundle__w=data, chunked=("bundle__w",))) == [[0, [[0, 5]]]]
    for number in random.SystemRandom().sample(range(5), 5):
        wire.put(0, data[number * CHUNK : (number + 1) * CHUNK], number)
    identity = wire.ask("commit")["id"]
    stored = root / "store" / store_name(data)[:2] / store_name(data)
    assert stored.read_bytes() == data and stored.stat().st_mode & 0o222 == 0
    assert stored.samefile(root / "releases" / identity / "bundle/w") and list((root / "partial").iterdir()) == []


def test_an_empty_file_and_content_of_one_byte(wire: Wire, root: Path) -> None:
    assert wire.begin(describe(site__a=b"", site__b=b"x", bundle__c=b"")) == [[0], [1]]
    wire.put(0, b"")
    wire.put(1, b"x")
    release = root / "releases" / wire.ask("commit")["id"]
    assert (release / "site/a").read_bytes() == (release / "bundle/c").read_bytes() == b""


GOOD = b"good content"


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (b"longer than it should be", {}),
        (GOOD, {"length": 3}),
        (GOOD, {"length": 1 << 40}),
        (GOOD, {"length": -1}),
        (GOOD, {"length": None}),
        (GOOD, {"length": "12"}),
        (GOOD, {"file": 2}),
        (GOOD, {"file": -1}),
        (GOOD, {"file": None}),
        (GOOD, {"file": "0"}),
        (GOOD, {"file": True}),
        (GOOD, {"chunk": 1}),
        (GOOD, {"chunk": -1}),
        (GOOD, {"chunk": 1 << 60}),
        (GOOD, {"chunk": [0]}),
        (GOOD, {"encoding": "gzip"}),
        (GOOD, {"encoding": ["zlib"]}),
        (GOOD, {"encoding": "zlib"}),  # as long as the content itself: that is not compressed
        (GOOD, {"file": 1, "chunk": 3}),
        (GOOD, {"file": 1, "chunk": 0}),
    ],
)
def test_takes_only_what_the_plan_misses(data: bytes, changes: dict[str, Any], wire: Wire, root: Path) -> None:
    wire.begin(describe(site__a=GOOD, bundle__w=os.urandom(3 * CHUNK), chunked=("bundle__w",)))
    with contextlib.suppress(BrokenPipeError):
        wire.put(**{"file": 0, "data": data, **changes})
    answer = wire.read()
    assert answer["code"] == "protocol" and answer["fatal"]
    assert wire.end() == 0 and wire.stderr == ""
    assert objects(root) == [] and len(list((root / "partial").iterdir())) == 1


def test_content_is_not_taken_twice(wire: Wire) -> None:
    wire.begin(describe(site__a=GOOD, site__b=b"b"))
    wire.put(0, GOOD)
    wire.put(0, GOOD)
    assert wire.read()["code"] == "protocol"


def test_put_needs_assemble(root: Path) -> None:
    for operations in ([], ["lock"], ["lock", "plan"]):
        wire = Wire(root)
        if "lock" in operations:
            wire.ask("lock", owner="me")
        if "plan" in operations:
            wire.plan(describe(site__a=b"x"))
        wire.put(0, b"x")
        answer = wire.read()
        assert answer["code"] == "protocol" and answer["fatal"]
        wire.end()


@pytest.mark.parametrize("chunked", [(), ("bundle__w",)])
@pytest.mark.parametrize("packed", [False, True])
def test_bytes_with_another_hash_are_not_kept(chunked: tuple[str, ...], packed: bool, wire: Wire, root: Path) -> None:
    data = os.urandom(1000) * 200
    wire.begin(describe(bundle__w=data, chunked=chunked))
    sent = bytearray(data[:CHUNK] if chunked else data)
    sent[random.SystemRandom().randrange(len(sent))] ^= 1 << random.SystemRandom().randrange(8)
    if packed:
        wire.put(0, zlib.compress(sent), encoding="zlib")
    else:
        wire.put(0, bytes(sent))
    answer = wire.read()
    assert answer["code"] == "hash" and answer["fatal"]
    assert wire.end() == 0 and wire.stderr == "" and objects(root) == []
    assert all(entry.stat().st_blocks == 0 for entry in (root / "partial").iterdir())


def test_compressed_content(wire: Wire, root: Path) -> None:
    small, large = b"abc" * 1000, (b"layer" * 30_000) + os.urandom(CHUNK)
    missing = wire.begin(describe(site__a=small, bundle__w=large, chunked=("bundle__w",)))
    assert missing == [[0], [1, [[0, 3]]]]
    wire.put(0, zlib.compress(small), encoding="zlib")
    wire.put(1, zlib.compress(large[:CHUNK]), 0, encoding="zlib")
    wire.put(1, large[CHUNK : 2 * CHUNK], 1)
    wire.put(1, large[2 * CHUNK :], 2)
    release = root / "releases" / wire.ask("commit")["id"]
    assert (release / "site/a").read_bytes() == small and (release / "bundle/w").read_bytes() == large


@pytest.mark.parametrize("chunked", [(), ("bundle__w",)])
def test_a_bomb_is_not_unpacked(chunked: tuple[str, ...], wire: Wire, root: Path) -> None:
    data = os.urandom(2 * CHUNK)
    wire.begin(describe(bundle__w=data, chunked=chunked))
    bomb = zlib.compress(bytes(60_000_000), 9)
    assert len(bomb) < CHUNK
    wire.put(0, bomb, encoding="zlib")
    answer = wire.read()
    assert answer["code"] == "hash" and "announced" in answer["what"] and answer["fatal"]
    peak_kb = int(Path(f"/proc/{wire.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0] or 0)
    assert peak_kb < 60_000
    assert wire.end() == 0 and wire.stderr == "" and objects(root) == []


def test_inflate_wants_exactly_what_was_announced() -> None:
    data = os.urandom(100) * 10
    packed = zlib.compress(data)
    assert inflate(memoryview(packed), len(data)) == data
    for block, size in ((packed, 999), (packed, 1001), (packed[:-1], 1000), (b"", 1000), (data, 1000), (packed, 0)):
        with pytest.raises(Refusal) as caught:
            inflate(memoryview(block), size)
        assert caught.value.code == "hash"


# ---- what an earlier push has left


def test_goes_on_where_an_earlier_push_was_cut(root: Path) -> None:
    data = os.urandom(6 * CHUNK + 5)
    release = describe(bundle__w=data, chunked=("bundle__w",))
    wire = Wire(root)
    wire.begin(release)
    for number in (0, 1, 4):
        wire.put(0, data[number * CHUNK : (number + 1) * CHUNK], number)
    wire.send({"op": "ping"})
    assert wire.read()["ok"] and wire.end() == 0
    wire = Wire(root)
    missing = wire.begin(release)
    assert missing == [[0, [[2, 2], [5, 2]]]]
    wire.put_all([data], missing)
    identity = wire.ask("commit")["id"]
    assert (root / "releases" / identity / "bundle/w").read_bytes() == data
    assert wire.end() == 0


def test_a_partial_file_is_kept_chunk_by_chunk_where_it_is_right(wire: Wire, root: Path) -> None:
    data = os.urandom(5 * CHUNK)
    (root / "partial").mkdir(parents=True)
    left = bytearray(data)
    left[CHUNK + 7] ^= 4
    left[3 * CHUNK : 4 * CHUNK] = bytes(CHUNK)  # a power cut can leave zeros
    (root / "partial" / store_name(data)).write_bytes(left + b"and too long")
    missing = wire.begin(describe(bundle__w=data, chunked=("bundle__w",)))
    assert missing == [[0, [[1, 1], [3, 1]]]]
    wire.put_all([data], missing)
    identity = wire.ask("commit")["id"]
    assert (root / "releases" / identity / "bundle/w").read_bytes() == data


def test_a_complete_partial_file_needs_nothing(wire: Wire, root: Path) -> None:
    data = os.urandom(3 * CHUNK)
    (root / "partial").mkdir(parents=True)
    left = root / "partial" / store_name(data)
    left.write_bytes(data)
    left.chmod(0o444)
    assert wire.begin(describe(bundle__w=data, chunked=("bundle__w",))) == []
    assert wire.ask("commit")["new"] and list((root / "partial").iterdir()) == []


@pytest.mark.parametrize("chunked", [(), ("bundle__w",)])
def test_does_not_write_through_symlinks(chunked: tuple[str, ...], wire: Wire, root: Path, tmp_path: Path) -> None:
    data = os.urandom(2 * CHUNK)
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    outside.chmod(0o600)
    wire.ask("lock", owner="me")
    name = store_name(data) if chunked else f"{sha(data)}.1"
    (root / "partial" / name).symlink_to(outside)
    wire.plan(describe(bundle__w=data, chunked=chunked))
    answer = wire.ask("assemble")
    if not chunked:
        wire.put(0, data)
        answer = wire.read()
    assert answer["code"] == "os-error"
    assert outside.read_bytes() == b"precious" and outside.stat().st_mode & 0o777 == 0o600


def test_a_second_session_cannot_write_the_same_file(root: Path) -> None:
    """A push whose lock was broken may still be in the middle of an upload."""
    data = os.urandom(3 * CHUNK)
    release = describe(bundle__w=data, chunked=("bundle__w",))
    first, second = Wire(root), Wire(root)
    first.begin(release)
    second.ask("lock", owner="other", force=True)
    second.plan(release)
    assert second.ask("assemble")["code"] == "lock-lost"
    first.end()
    assert second.ask("assemble")["missing"] == [[0, [[0, 3]]]]
    second.end()


# ---- what other releases have


def install_weights(root: Path, data: bytes) -> str:
    wire = Wire(root)
    release = describe(bundle__w=data, chunked=("bundle__w",))
    wire.put_all([data], wire.begin(release))
    identity = str(wire.ask("commit")["id"])
    assert wire.end() == 0
    return identity


def test_copies_chunks_that_other_releases_have(wire: Wire, root: Path) -> None:
    parts = [os.urandom(CHUNK) for _ in range(6)]
    install_weights(root, b"".join(parts[:4]))
    install_weights(root, b"".join([parts[4], parts[0]]))
    new = b"".join([parts[3], os.urandom(CHUNK), parts[4], parts[0], parts[0]])  # moved, and one of them twice
    wire.ask("lock", owner="me")
    planned = wire.plan(describe(bundle__w=new, chunked=("bundle__w",)))
    assert planned["upload"] == CHUNK
    answer = wire.ask("assemble")
    assert (answer["missing"], answer["copied"]) == ([[0, [[1, 1]]]], 4 * CHUNK)
    wire.put_all([new], answer["missing"])
    identity = wire.ask("commit")["id"]
    assert (root / "releases" / identity / "bundle/w").read_bytes() == new
    assert wire.ask("verify", release=identity)["damaged"] == []


@pytest.mark.parametrize("damage", ["flipped", "shorter", "gone", "folder"])
def test_a_damaged_source_is_not_copied(damage: str, wire: Wire, root: Path) -> None:
    parts = [os.urandom(CHUNK) for _ in range(4)]
    old = b"".join(parts)
    install_weights(root, old)
    source = root / "store" / store_name(old)[:2] / store_name(old)
    source.chmod(0o644)
    if damage == "flipped":
        source.write_bytes(old[: CHUNK + 5] + bytes([old[CHUNK + 5] ^ 8]) + old[CHUNK + 6 :])
        good = [0, 2, 3]
    elif damage == "shorter":
        source.write_bytes(old[: 2 * CHUNK + 5])
        good = [0, 1]
    else:
        source.unlink()
        if damage == "folder":
            source.mkdir()
        good = [0, 1, 2, 3]  # the release's own link to it is left
    new = b"".join([*parts, os.urandom(CHUNK)])
    missing = wire.begin(describe(bundle__w=new, chunked=("bundle__w",)))
    lacking = [number for first, count in missing[0][1] for number in range(first, first + count)]
    assert lacking == [number for number in range(5) if number not in good]
    wire.put_all([new], missing)
    identity = wire.ask("commit")["id"]
    assert (root / "releases" / identity / "bundle/w").read_bytes() == new


def test_the_same_content_of_two_releases_is_stored_once(wire: Wire, root: Path) -> None:
    release, contents = describe_answering(bundle__w=os.urandom(50))
    wire.put_all(contents, wire.begin(release))
    first = wire.ask("commit")["id"]
    release["name"] = "another name"
    assert wire.plan(release)["missing"] == []
    second = wire.ask("commit")["id"]
    assert first != second
    one, other = (root / "releases" / identity / "bundle/w" for identity in (first, second))
    assert one.samefile(other) and len(objects(root)) == 2


# ---- errors of the disk


def make_file(data: bytes, path: str = "bundle/w") -> File:
    chunks = tuple((int(length), str(digest)) for length, digest in cut(data))
    return File(path, len(data), name_content(chunks), chunks)


@pytest.fixture
def home(root: Path) -> Home:
    home = Home(str(root))
    home.make_folders()
    return home


def test_a_write_that_failed_in_the_background_is_not_forgotten(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports it to one fsync only; a later one says that all is well."""
    data = os.urandom(4 * CHUNK)
    failures = [OSError(errno.EIO, "Input/output error")]

    def fail_once(descriptor: int) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(incoming, "WRITEBACK_BYTES", CHUNK)
    monkeypatch.setattr(os, "fdatasync", fail_once)
    with ThreadPoolExecutor(2) as pool:
        assembly = Assembly(home, make_file(data), pool)
        with pytest.raises(OSError, match="Input/output"):
            for number in range(4):
                assembly.write(number, memoryview(data)[number * CHUNK : (number + 1) * CHUNK])
            assembly.make_durable()
        assembly.close()
    assert failures == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_not_kept_full(home: Home, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(2 * CHUNK)

    def fail(descriptor: int) -> None:
        raise OSError(number, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with ThreadPoolExecutor(2) as pool:
        receiving = Incoming(home, type("Release", (), {"files": (make_file(data),)})(), pool)
        receiving.prepare([0], {}, lambda: None)
        for chunk in range(2):
            receiving.store(0, chunk, memoryview(data)[chunk * CHUNK : (chunk + 1) * CHUNK], None)  # type: ignore[arg-type]
        receiving.close()
    assert os.listdir(home.path("partial")) == [] == os.listdir(home.path("store"))


def test_nothing_is_written_after_the_end(home: Home) -> None:
    data = os.urandom(2 * CHUNK)
    with ThreadPoolExecutor(2) as pool:
        receiving = Incoming(home, type("Release", (), {"files": (make_file(data),)})(), pool)
        receiving.prepare([0], {}, lambda: None)
        receiving.close()
        with pytest.raises(Refusal, match="after the end"):
            receiving.store(0, 0, memoryview(data)[:CHUNK], None)  # type: ignore[arg-type]
        with pytest.raises(Refusal, match="after the end"):
            receiving.name_content(home.path("partial", make_file(data).name), make_file(data))
