"""The disk is full, out of inodes, over quota or read-only."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from edgeawq.deploy.push import SilentListener
from edgeawq.deploy.releases import collect_garbage
from edgeawq.errors import DeployError, DeviceUnfitError, EdgeawqError
from tests.deploy.faults.disks import ext4, make_image, small_tmpfs
from tests.deploy.faults.harness import COUNT_STEPS, HarnessTransport, Stage, case, run_cases, sample
from tests.deploy.invariants import answer

CHECKED = "DeviceUnfitError; the old release runs and answers; with room again the push completes, no leftovers"


def fill(path: Path, leave_bytes: int) -> None:
    """Leave so much room on the file system of `path`, a file."""
    numbers = os.statvfs(path.parent)
    with path.open("wb") as stream:
        left = numbers.f_bavail * numbers.f_frsize - leave_bytes
        while left > 0:
            count = min(left, 1 << 20)
            stream.write(bytes(count))
            left -= count


class Filler(SilentListener):
    """Somebody else, who fills the disk when the upload begins."""

    def __init__(self, path: Path, leave_bytes: int) -> None:
        self.path = path
        self.leave_bytes = leave_bytes

    def upload_begins(self, files: int, total_bytes: int) -> None:
        """Fill it."""
        fill(self.path, self.leave_bytes)


# 13 MB are sent; the rest is for small files, folders and the release itself.
LEVELS = [0, 4096, 8192, 20_000, 60_000, 120_000, 200_000, 1_000_000, 5_000_000, 9_000_000, 12_000_000, 12_900_000]


def test_the_disk_fills_up_during_the_upload(wide_stage: Stage, tmp_path: Path, as_root: None) -> None:
    def run(level: int) -> None:
        with small_tmpfs(tmp_path / "disk", "size=80m") as disk:
            root = wide_stage.fresh(disk)
            with pytest.raises(DeviceUnfitError, match="disk is full"):
                wide_stage.push(root, listener=Filler(disk / "filler", level))
            assert answer(root) == "old"
            assert sum(entry.stat().st_blocks for entry in (root / "partial").iterdir()) == 0 or level
            (disk / "filler").unlink()
            wide_stage.check_and_complete(root, ("old",))

    run_cases("disk full during the upload", CHECKED, sample(LEVELS, 4), run)


def test_the_disk_is_full_before(wide_stage: Stage, tmp_path: Path, as_root: None) -> None:
    def run(level: int) -> None:
        with small_tmpfs(tmp_path / "disk", "size=60m") as disk:
            root = wide_stage.fresh(disk)
            fill(disk / "filler", level)
            with pytest.raises(DeviceUnfitError, match=r"disk is full|are needed") as caught:
                wide_stage.push(root)
            assert "edgeawq gc" in caught.value.remedy and answer(root) == "old"
            (disk / "filler").unlink()
            wide_stage.check_and_complete(root, ("old",))

    run_cases("disk full before the push", CHECKED, [0, 4096, 1_000_000, 20_000_000], run)


def test_a_full_disk_can_be_cleared_up(stage: Stage, tmp_path: Path, as_root: None) -> None:
    """gc has to write its own state; it must not need room that it is there to make."""
    with (
        case("gc on a full disk", "old releases go, the running one answers"),
        small_tmpfs(tmp_path / "disk", "size=30m") as disk,
    ):
        root = stage.fresh(disk)
        stage.push(root)
        stage.push(root, stage.old)
        (root / "previous").unlink()
        fill(disk / "filler", 0)
        try:
            removed, _ = collect_garbage(HarnessTransport(), stage.device(root), 1)
        except DeviceUnfitError:
            (disk / "filler").unlink()  # not a byte was left: some room is needed after all
            removed, _ = collect_garbage(HarnessTransport(), stage.device(root), 1)
        assert len(removed) <= 1 and answer(root) == "old"


def test_no_inodes(stage: Stage, tmp_path: Path, as_root: None) -> None:
    def run(extra: int) -> None:
        with small_tmpfs(tmp_path / "disk", "size=40m,nr_inodes=2000") as disk:
            root = stage.fresh(disk)
            free = os.statvfs(disk).f_favail
            (disk / "many").mkdir()
            for number in range(free - 1 - extra):
                (disk / "many" / str(number)).touch()
            with pytest.raises(DeviceUnfitError, match="disk is full"):
                stage.push(root)
            assert answer(root) == "old"
            subprocess.run(["rm", "-r", str(disk / "many")], check=True)
            stage.check_and_complete(root, ("old",))

    run_cases("no inodes left", CHECKED, sample(list(range(16)), 4), run)


FAIL_AT = COUNT_STEPS.replace("kill(os.getpid(), signal.SIGKILL)", "raise OSError(ERROR, os.strerror(ERROR))")


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC, errno.EIO, errno.EROFS])
def test_any_step_on_the_disk_fails(stage: Stage, tmp_path: Path, number: int) -> None:
    """Over quota, full, broken or suddenly read-only, at any call that changes the disk."""
    names = ["rename", "replace", "fsync", "link", "symlink", "mkdir", "pwrite", "ftruncate", "utime", "fchmod"]
    log = tmp_path / "log"
    install = f"{FAIL_AT}\nERROR = {int(number)}\n_install({names!r}, %d, %r, %r)\n"
    stage.push(stage.fresh(), prelude=install % (-1, "", str(log)))
    n_steps = len(log.read_text().split())

    def run(step: int) -> None:
        root = stage.fresh()
        try:
            stage.push(root, prelude=install % (step, "before", ""))
        except EdgeawqError as error:
            assert error.remedy or number == errno.EIO, error
        stage.check_and_complete(root)

    run_cases(
        f"a step on the disk fails ({errno.errorcode[number]})",
        "an error with a remedy; wholly the old or the new release answers; the next push completes, no leftovers",
        sample(list(range(n_steps)), 4),
        run,
    )


def test_a_read_only_file_system(stage: Stage, tmp_path: Path, as_root: None) -> None:
    image = tmp_path / "disk.img"
    make_image(image, 64 << 20)
    with ext4(image, tmp_path / "mount") as disk:
        stage.fresh(disk).rename(disk / "root")
    with case("read-only file system", "DeviceUnfitError that names it; the old release answers"):
        with ext4(image, tmp_path / "mount", "ro") as disk:
            with pytest.raises(DeviceUnfitError, match="read-only"):
                stage.push(disk / "root")
            assert answer_read_only(disk / "root") == "old"
        with ext4(image, tmp_path / "mount") as disk:
            stage.check_and_complete(disk / "root", ("old",))


def answer_read_only(root: Path) -> str:
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    try:
        return answer(root)
    finally:
        del os.environ["PYTHONDONTWRITEBYTECODE"]


def test_a_folder_that_belongs_to_somebody_else(stage: Stage, tmp_path: Path) -> None:
    """The receiver runs as a user that may not write; where the tests run as root it gives its rights away first."""
    root = stage.fresh()
    prelude = (
        "import os\n_real = os.path.expanduser\ndef _give_up_rights(path):\n"
        "    if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "    return _real(path)\nos.path.expanduser = _give_up_rights\n"
    )
    if os.getuid() != 0:
        for path in [root, *(entry for entry in root.rglob("*") if entry.is_dir())]:
            path.chmod(0o555)
    else:
        for parent in [root, *root.parents][: len(root.parents) - 1]:
            parent.chmod(parent.stat().st_mode | 0o055)
    with case("a folder of another user", "DeviceUnfitError that names it; the old release answers"):
        with pytest.raises(DeviceUnfitError, match="may not write"):
            stage.push(root, prelude=prelude)
        assert answer_read_only(root) == "old"
    for path in [root, *(entry for entry in root.rglob("*") if entry.is_dir())]:
        path.chmod(0o755)
    stage.check_and_complete(root, ("old",))


@pytest.mark.parametrize("where", ["file", "below a file", "proc"])
def test_no_place_for_the_folder(stage: Stage, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    root = {"file": tmp_path / "file", "below a file": tmp_path / "file/root", "proc": Path("/proc/edgeawq")}[where]
    with case("no place for the folder", "DeployError that names it"), pytest.raises(DeployError) as caught:
        stage.push(root)
    assert str(root) in caught.value.what or "file" in caught.value.what
