"""The power fails in the middle of a push: what had reached the disk at that moment is mounted again.

The device's folder lies on ext4 in a file. The receiver stops itself at chosen steps; the file then holds exactly
what the file system had written, and a copy of it is the disk as it would be found after the cut. Nothing but fsync
brings anything to the disk here: the file system's own commits, every 5 s otherwise, come every 10 minutes.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from edgeawq.deploy.transport import RemoteProcess
from tests.deploy.faults.disks import STOP_AT, Photographer, copy_when_quiet, ext4, make_image
from tests.deploy.faults.harness import ALL, STEPS, HarnessTransport, Stage, case, choose_seed, kill_at, run_cases
from tests.deploy.invariants import answer, leftovers

IMAGE_BYTES = 96 << 20
CHECKED = "journal replayed; wholly the old or the new release runs and answers; a push there completes"
MODES = ["commit=600", "commit=600,data=writeback,noauto_da_alloc"]


class WatchedTransport(HarnessTransport):
    """Tells the photographer which process the receiver is."""

    def __init__(self, prelude: str, photographer: Photographer) -> None:
        super().__init__(prelude)
        self.photographer = photographer

    def start(self, command: str, **more: Any) -> RemoteProcess:
        """Start a command."""
        process = super().start(command, **more)
        self.photographer.pid = self.processes[-1]._child.pid
        return process


def prepare(stage: Stage, folder: Path, mode: str) -> Path:
    """An image with the old release on it, all of it on the disk."""
    image = folder / "disk.img"
    make_image(image, IMAGE_BYTES)
    with ext4(image, folder / "mount"):
        stage.fresh(folder / "mount").rename(folder / "mount" / "root")
    return image


@pytest.mark.parametrize("mode", MODES)
def test_power_cuts(large_stage: Stage, tmp_path: Path, as_root: None, mode: str) -> None:
    image = prepare(large_stage, tmp_path, mode)
    log = tmp_path / "steps"
    large_stage.push(large_stage.fresh(), prelude=kill_at(-1, "", log))
    n_steps = len(log.read_text().split())
    moments = sorted(random.Random(choose_seed()).sample(range(n_steps), min(n_steps, 60 if ALL else 6)))
    prelude = f"{STOP_AT}\n_install({STEPS!r}, set({moments!r}))\n"
    with ext4(image, tmp_path / "mount", mode) as disk:
        photographer = Photographer(image, tmp_path)
        large_stage.push(disk / "root", transport=WatchedTransport(prelude, photographer))
        photographer.close()
        last = tmp_path / "last.img"
        copy_when_quiet(image, last)
    assert len(photographer.copies) >= len(moments) * 0.8, "a push may have a few steps less than the one before"
    found: list[str] = []

    def run(copy: Path) -> None:
        with ext4(copy, tmp_path / "again") as disk:
            found.append(large_stage.check_and_complete(disk / "root"))
        copy.unlink()

    run_cases(f"power cut (ext4, {mode})", CHECKED, photographer.copies, run)
    assert found == sorted(found, reverse=True), "once it was new, it must not be old again"
    with case("power cut after the end of a push", "the new release runs"), ext4(last, tmp_path / "again") as disk:
        # The lock was given back after the last fsync; a lock from before a restart holds nobody up.
        assert answer(disk / "root") == "new" and leftovers(disk / "root") in ([], ["lock"])


FORGET_FSYNC = """
import os, stat
def _forget(real):
    def fsync(descriptor):
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            real(descriptor)
    return fsync
os.fsync, os.fdatasync = _forget(os.fsync), _forget(os.fdatasync)
"""


def test_control_a_forgotten_fsync_is_noticed(large_stage: Stage, tmp_path: Path, as_root: None) -> None:
    """A receiver that syncs folders but no files: if this went well, the test above would be worth nothing."""
    image = prepare(large_stage, tmp_path, MODES[1])
    with ext4(image, tmp_path / "mount", MODES[1]) as disk:
        large_stage.push(disk / "root", prelude=FORGET_FSYNC)
        assert answer(disk / "root") == "new"
        copy_when_quiet(image, tmp_path / "cut.img")
    with ext4(tmp_path / "cut.img", tmp_path / "again") as disk, pytest.raises((AssertionError, OSError)):
        assert answer(disk / "root") == "new"
