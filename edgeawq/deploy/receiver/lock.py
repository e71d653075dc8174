"""The device lock: who is changing the device, for how long, and whether that process is still there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

from .files import is_count, read_json, write_file
from .limits import MAX_LINE_BYTES
from .refusal import Refusal


def boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            return stream.read(64).strip()
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """Return when process `pid` began, in the kernel's ticks; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read(4096).rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class Lock:
    """The device lock: the folder `lock`, which names its owner. Changed only under flock(2) on `lock.guard`."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.folder = os.path.join(root, "lock")
        self.owner_file = os.path.join(self.folder, "owner.json")
        self.token = 0
        self.guarded = False

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Keep every other process from changing the lock, or state.json, inside the block."""
        if self.guarded:  # a second flock by the same process would wait for the first
            yield
            return
        descriptor = os.open(os.path.join(self.root, "lock.guard"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self.guarded = True
            yield
        finally:
            self.guarded = False
            os.close(descriptor)

    def read_owner(self) -> dict[str, Any] | None:
        if not os.path.isdir(self.folder):
            return None
        return read_json(self.owner_file, MAX_LINE_BYTES)

    def describe(self) -> dict[str, Any] | None:
        """Return who holds the lock, since when, and whether that process is still there; None when it is free."""
        owner = self.read_owner()
        if owner is None:
            return None
        pid = owner.get("pid")
        same_boot = owner.get("boot_id") == boot_id()
        alive = same_boot and isinstance(pid, int) and process_start(pid) == owner.get("pid_start") != ""
        since = owner.get("time")
        age_s = max(0.0, time.time() - since) if isinstance(since, (int, float)) else 0.0
        return {
            "owner": str(owner.get("owner", "?"))[:200],
            "token": owner.get("token"),
            "age_s": age_s,
            "alive": alive,
        }

    def take(self, owner: str, *, force: bool, wait_s: float) -> dict[str, Any] | None:
        """Take the lock and return what stale or broken lock was in the way, if any."""
        deadline = time.monotonic() + wait_s
        while True:
            with self.guard():
                holder = self.describe()
                if holder is None or force or not holder["alive"]:
                    self._write_owner(owner)
                    return holder
            if time.monotonic() >= deadline:
                raise Refusal("locked", f"the device is locked by {holder['owner']}", lock=holder)
            time.sleep(0.2)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Refuse to go on when the lock is no longer ours; nobody can take it inside the block."""
        with self.guard():
            owner = self.read_owner()
            if not self.token or owner is None or owner.get("token") != self.token:
                raise Refusal("lock-lost", "this push has lost the device lock: someone has broken it")
            yield

    def release(self) -> None:
        if not self.token:
            return
        with self.guard():
            owner = self.read_owner()
            if owner is not None and owner.get("token") == self.token:
                shutil.rmtree(self.folder)
        self.token = 0

    def _write_owner(self, owner: str) -> None:
        counter = os.path.join(self.root, "lock.token")
        last = read_json(counter, MAX_LINE_BYTES).get("token")
        token = int(last or 0) + 1 if is_count(last, 1 << 60) else 1
        write_file(counter, json.dumps({"token": token}).encode())
        os.makedirs(self.folder, exist_ok=True)
        pid = os.getpid()
        description = {
            "owner": owner,
            "time": time.time(),
            "pid": pid,
            "pid_start": process_start(pid),
            "boot_id": boot_id(),
            "token": token,
        }
        write_file(self.owner_file, json.dumps(description).encode())
        self.token = token
