"""File systems to break: a small tmpfs, and ext4 in a file that can be copied at any moment, as after a power cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(source: str, folder: Path, *arguments: str) -> Iterator[Path]:
    """Mount something; skip the test where that is not possible."""
    if os.getuid() != 0:
        pytest.skip("mounting file systems needs root")
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, source, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not possible here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        for _ in range(50):  # a process that has just been killed may still be in it
            if subprocess.run(["umount", str(folder)], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def small_tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs with a limit: "size=40m", "nr_inodes=200"."""
    with mounted("tmpfs", folder, "-t", "tmpfs", "-o", options) as path:
        yield path


def make_image(path: Path, size: int) -> None:
    """Make an ext4 file system in a file."""
    tool = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not tool:
        pytest.skip("needs mkfs.ext4 (Debian: apt-get install e2fsprogs)")
    with path.open("wb") as stream:
        stream.truncate(size)
    # Nothing is left for the kernel to initialize in the background: the disk comes to rest when its users do.
    subprocess.run([tool, "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(path)], check=True)


@contextlib.contextmanager
def ext4(image: Path, folder: Path, options: str = "") -> Iterator[Path]:
    """Mount the ext4 file system in `image`; its journal is replayed."""
    with mounted(str(image), folder, "-o", ",".join(filter(None, ["loop", options]))) as path:
        yield path


# Run in the receiver's process: it stops itself at the steps in a set, and goes on when it is told to.
STOP_AT = """
import os, signal, threading
def _install(names, targets):
    lock, stopping, count = threading.Lock(), threading.Lock(), [0]
    def wrap(real):
        def step(*arguments, **more):
            with lock:
                number = count[0]
                count[0] += 1
            if number in targets:
                # One stop after the other: two at once would be one. This thread's own signal ends the call, so
                # that the lock is free again only when the process goes on.
                with stopping:
                    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            return real(*arguments, **more)
        return step
    for name in names:
        setattr(os, name, wrap(getattr(os, name)))
"""


def copy_when_quiet(image: Path, target: Path) -> None:
    """Copy what has reached the disk. All writers are stopped: when two copies agree, nothing was written meanwhile."""
    previous = target.with_suffix(".before")
    subprocess.run(["cp", "--sparse=always", str(image), str(previous)], check=True)
    for _ in range(50):
        subprocess.run(["cp", "--sparse=always", str(image), str(target)], check=True)
        if subprocess.run(["cmp", "-s", str(previous), str(target)]).returncode == 0:
            previous.unlink()
            return
        target.replace(previous)
    raise AssertionError("the disk does not come to rest")


class Photographer:
    """Copies the image each time the receiver has stopped itself, and lets it go on."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.image = image
        self.folder = folder
        self.copies: list[Path] = []
        self.failures: list[BaseException] = []
        self.pid = 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.done.wait(0.002):
            with contextlib.suppress(OSError):
                if not self.pid or self._state() != "T":
                    continue
                try:
                    target = self.folder / f"cut{len(self.copies)}.img"
                    copy_when_quiet(self.image, target)
                    self.copies.append(target)
                except (AssertionError, subprocess.CalledProcessError) as error:
                    self.failures.append(error)
                os.kill(self.pid, signal.SIGCONT)

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def close(self) -> None:
        """End; what went wrong is raised here."""
        self.done.set()
        self.thread.join(60)
        if self.failures:
            raise self.failures[0]
