"""Bits flip on the device's disk, in every kind of file and in every chunk, and on the wire."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeawq.deploy.receiver_client import ReceiverClient
from edgeawq.deploy.release import list_bundle
from edgeawq.deploy.transport import RemoteProcess
from edgeawq.errors import EdgeawqError
from tests.deploy.faults.harness import ALL, QUICK, HarnessTransport, Stage, case, choose_seed, run_cases, sample
from tests.deploy.invariants import answer, leftovers

CHECKED = "push --verify, or the health check, finds it; the push repairs it; the release is whole and answers"
VERIFY = dataclasses.replace(QUICK, verify=True)


def flip(path: Path, start: int = 0, length: int | None = None) -> None:
    """Flip one random bit of a file, in a part of it; its time stamps stay, as they do when a disk forgets."""
    found = path.stat()
    position = start + random.SystemRandom().randrange(found.st_size if length is None else length)
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 1 << random.SystemRandom().randrange(8)]))
    path.chmod(found.st_mode & 0o777)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def verify(stage: Stage, root: Path, identity: str) -> list[str]:
    """Let the device hash a release; it holds the lock meanwhile, as in a push."""
    python = stage.facts.pythons[0].path
    with ReceiverClient(HarnessTransport(), python=python, root=str(root)) as client:
        client.call("lock", owner="test")
        return list(client.call("verify", release=identity)["damaged"])


def test_every_file_and_every_chunk(wide_stage: Stage) -> None:
    release = (wide_stage.template / "current").resolve()
    places: list[tuple[str, int, int]] = []
    for entry in json.loads((release / "release.json").read_text())["files"]:
        start = 0
        for length, _ in entry.get("chunks") or [[entry["size"], ""]]:
            if length:
                places.append((entry["path"], start, length))
            start += length
    assert len([place for place in places if place[0] == "bundle/weights.bin"]) >= 4

    def run(place: tuple[str, int, int]) -> None:
        root = wide_stage.fresh()
        flip(root / "current" / place[0], *place[1:])
        report = wide_stage.push(root, wide_stage.old, options=VERIFY)
        assert place[0] in report.repaired and 0 < report.bytes_sent <= 2 * place[2] + 5_000_000
        assert answer(root) == "old" and leftovers(root) == [] and verify(wide_stage, root, report.release) == []

    weights = [place for place in places if place[0] == "bundle/weights.bin"]
    others = [place for place in places if place[0] != "bundle/weights.bin"]
    run_cases(
        "bit flip in a file of the release, one case a chunk", CHECKED, sample(weights, 2) + sample(others, 4), run
    )


def overwrite(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.write_text(text)

    return write


def point_to(target: str) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return link


GARBAGE: list[tuple[str, Callable[[Path], None]]] = [
    (name, change)
    for name in ("state.json", "lock.token", "lock.guard", "log", "bin/edgeawq", "current/release.json")
    for change in (flip, overwrite(""), overwrite("\0" * 500), overwrite("{}"), overwrite('{"releases": 3}'))
    if not (name in ("lock.guard",) and change is flip)
]
POINTERS = [
    (name, change)
    for name in ("current", "previous")
    for change in (
        overwrite("garbage"),
        overwrite(""),
        point_to("releases/0123456789abcdef"),
        point_to("/"),
        point_to("current"),
        point_to("store"),
        lambda path: path.unlink(missing_ok=True),
    )
]


def test_files_about_releases(stage: Stage) -> None:
    def run(entry: tuple[str, Callable[[Path], None]]) -> None:
        root = stage.fresh()
        entry[1](root / entry[0])
        stage.push(root, stage.old)
        assert answer(root) == "old" and leftovers(root) == []
        stage.check_and_complete(root, ("old",))

    cases: list[tuple[str, Callable[[Path], None]]] = [*GARBAGE, *POINTERS]
    kind = "damage to state.json, log, lock, launcher, release.json, current, previous"
    run_cases(kind, "the next push completes and leaves all of it right", sample(cases, 8), run)


def test_damage_that_is_found_by_the_health_check(stage: Stage) -> None:
    def run(name: str) -> None:
        root = stage.fresh()
        path = root / "current" / name
        path.chmod(0o644)
        path.write_bytes(b"!" + path.read_bytes()[1:])
        report = stage.push(root, stage.old)
        assert name in report.repaired and answer(root) == "old" and leftovers(root) == []

    names = ["site/edgeawq/__main__.py", "bundle/golden.json", "bundle/weights.bin"]
    run_cases("damage that the health check notices", "repaired without --verify", names, run)


def test_an_object_of_the_store_that_a_new_release_wants(wide_stage: Stage) -> None:
    """Its name and size are right, its content is not: a new release that links to it must not be switched on."""

    def run(name: str) -> None:
        root = wide_stage.fresh()
        wide_stage.push(root)
        source = (root / "current" / name).resolve()
        stored = next(path for path in (root / "store").rglob("*") if path.is_file() and path.samefile(source))
        wide_stage.push(root, wide_stage.old)
        data = bytearray(stored.read_bytes())
        data[0] ^= 0xFF
        stored.unlink()
        stored.write_bytes(data)
        os.utime(stored, ns=(0, 0))
        for release in (root / "releases").iterdir():  # as if it had come with another release that is gone
            if not release.samefile(root / "current"):
                (root / "previous").unlink(missing_ok=True)
        report = wide_stage.push(root, options=VERIFY)
        assert answer(root) == "new" and leftovers(root) == [] and verify(wide_stage, root, report.release) == []

    run_cases("a damaged object of the store", CHECKED, ["bundle/weights.bin", "bundle/golden.json"], run)


def test_partial_files(wide_stage: Stage) -> None:
    weights = next(file for file in list_bundle(wide_stage.new)[1] if file.path == "bundle/weights.bin")
    good = weights.source.read_bytes()

    def run(kind: str) -> None:
        root = wide_stage.fresh()
        partial = root / "partial" / weights.name
        if kind == "folder":
            partial.mkdir()
        elif kind == "symlink":
            partial.symlink_to("/dev/zero")
        else:
            data = {"zeros": bytes(len(good)), "shorter": good[: len(good) // 2], "longer": good + b"x" * 5000}
            partial.write_bytes(data.get(kind, good))
            if kind == "flipped":
                flip(partial)
        report = wide_stage.push(root)
        if kind in ("flipped", "shorter", "longer"):
            assert report.bytes_sent < 10_000_000
        wide_stage.check_and_complete(root, ("new",))

    kinds = ["flipped", "zeros", "shorter", "longer", "folder", "symlink"]
    run_cases("damaged partial file of an earlier push", "right chunks are kept, wrong ones sent again", kinds, run)


class FlippingProcess:
    """A process on whose wire one bit flips, at a byte of one direction."""

    def __init__(self, process: Any, direction: str, position: int) -> None:
        self.process = process
        self.direction = direction
        self.position = position
        self.passed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.process, name)

    def _pass(self, data: bytes | memoryview, direction: str) -> bytes:
        block = bytearray(data)
        if direction == self.direction:
            offset = self.position - self.passed
            if 0 <= offset < len(block):
                block[offset] ^= 1 << random.SystemRandom().randrange(8)
            self.passed += len(block)
        return bytes(block)

    def write(self, data: bytes | memoryview) -> None:
        """Send."""
        self.process.write(self._pass(data, "up"))

    def read(self, size: int) -> bytes:
        """Receive."""
        return self._pass(self.process.read(size), "down")


class FlippingTransport(HarnessTransport):
    """This machine, with one bit flipped on the way to or from the receiver."""

    def __init__(self, direction: str, position: int) -> None:
        super().__init__()
        self.direction = direction
        self.position = position
        self.process: FlippingProcess | None = None

    def start(self, command: str, **more: Any) -> RemoteProcess:
        """Start a command. A receiver that waits for bytes that never come is given up soon."""
        self.process = FlippingProcess(super().start(command, stall_timeout_s=3.0), self.direction, self.position)
        return self.process


@pytest.mark.parametrize("direction", ["up", "down"])
def test_bits_that_flip_on_the_wire(stage: Stage, direction: str) -> None:
    """SSH's own check keeps them from us; what is below must hold without it."""
    counting = FlippingTransport(direction, -1)
    stage.push(stage.fresh(), transport=counting)
    assert counting.process
    total = counting.process.passed
    source = random.Random(choose_seed())

    def run(position: int) -> None:
        root = stage.fresh()
        with contextlib.suppress(EdgeawqError):
            stage.push(root, transport=FlippingTransport(direction, position))
        stage.check_and_complete(root)

    positions = [source.randrange(total) for _ in range(100 if ALL else 6)]
    checked = "an error or no harm; wholly the old or the new release answers; the next push completes"
    run_cases(f"bit flip on the wire ({direction})", checked, positions, run)


def test_a_bit_in_the_content_on_the_wire_is_never_stored(stage: Stage) -> None:
    with case("bit flip on the wire (content)", "TransferError that names the hash; nothing of it is stored"):
        counting = FlippingTransport("up", -1)
        stage.push(stage.fresh(), transport=counting)
        assert counting.process
        for _ in range(3):
            root = stage.fresh()
            # The weights, 300 kB of random bytes, are by far the largest part.
            middle = counting.process.passed - random.SystemRandom().randrange(50_000, 250_000)
            with pytest.raises(EdgeawqError, match="hash"):
                stage.push(root, transport=FlippingTransport("up", middle))
            stage.check_and_complete(root, ("old",))
