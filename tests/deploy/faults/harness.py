"""What the fault tests share: a device whose receiver can be made to fail at a chosen step, and the book of cases.

Nothing of this is in the product: the receiver is sent as always, with a few lines of Python before its first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgeawq.deploy.device_facts import DeviceFacts, gather_facts
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.local import LocalTransport
from edgeawq.deploy.push import PushOptions, PushReport, push
from edgeawq.deploy.receiver_program import read_program
from edgeawq.deploy.transport import RemoteProcess
from edgeawq.deploy.upload import UploadOptions
from tests.deploy.fakes import make_bundle, make_site
from tests.deploy.invariants import answer, leftovers

T = TypeVar("T")

ALL = os.environ.get("EDGEAWQ_FAULTS") == "all"
QUICK = PushOptions(health_timeout_s=60)

# Every call by which the receiver changes the disk, or answers.
STEPS = [
    "rename",
    "replace",
    "fsync",
    "fdatasync",
    "link",
    "symlink",
    "mkdir",
    "unlink",
    "rmdir",
    "pwrite",
    "write",
    "ftruncate",
    "utime",
    "chmod",
    "fchmod",
    "open",
]

COUNT_STEPS = """
import os, signal, threading
def _install(names, target, moment, log):
    lock, count = threading.Lock(), [0]
    write, open_, kill, half_write, half_pwrite = os.write, os.open, os.kill, os.write, os.pwrite
    def wrap(name, real):
        def step(*arguments, **more):
            with lock:
                number = count[0]
                count[0] += 1
                if log:
                    descriptor = open_(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                    write(descriptor, name.encode() + b"\\n")
                    os.close(descriptor)
            if number == target:
                if moment == "halfway" and name == "pwrite":
                    half_pwrite(arguments[0], arguments[1][: len(arguments[1]) // 2], *arguments[2:])
                if moment == "halfway" and name == "write":
                    half_write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                if moment == "after":
                    real(*arguments, **more)
                kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)
        return step
    for name in names:
        setattr(os, name, wrap(name, getattr(os, name)))
"""


def kill_at(step: int, moment: str, log: Path | None = None) -> str:
    """Python that lets the receiver kill itself at its n-th step; with step -1 it only writes the steps to `log`."""
    return f"{COUNT_STEPS}\n_install({STEPS!r}, {step}, {moment!r}, {str(log) if log else ''!r})\n"


def shift_clock(seconds: float) -> str:
    """Python that makes the receiver's clock wrong."""
    return f"import time\n_real_time = time.time\ntime.time = lambda: _real_time() + {seconds!r}\n"


class HarnessTransport(LocalTransport):
    """This machine, with `prelude` run in the receiver's process before the receiver."""

    def __init__(self, prelude: str = "") -> None:
        self.prelude = prelude
        self.processes: list[Any] = []

    def start(self, command: str, **more: Any) -> RemoteProcess:
        """Start a command; the receiver is told from others by its program."""
        bootstrap = read_program()[0]
        changed = command.replace(shlex.quote(bootstrap), shlex.quote(self.prelude + bootstrap))
        self.processes.append(super().start(changed, **more))
        return self.processes[-1]  # type: ignore[no-any-return]


@dataclasses.dataclass
class Stage:
    """A device with a release called "old" and a bundle "new" to push, at a fresh place for each case."""

    folder: Path
    facts: DeviceFacts
    site: Path
    old: Path
    new: Path
    template: Path
    n_cases: int = 0

    def device(self, root: Path) -> Device:
        """The device with its releases in `root`."""
        return Device(name="localhost", transport="local", root=str(root), python=sys.executable)

    def fresh(self, base: Path | None = None) -> Path:
        """Return a new copy of the device's folder, hard links and all."""
        self.n_cases += 1
        root = (base or self.folder) / f"case{self.n_cases}"
        subprocess.run(["cp", "-a", str(self.template), str(root)], check=True)
        return root

    def push(
        self, root: Path, bundle: Path | None = None, *, prelude: str = "", channels: int = 1, **more: Any
    ) -> PushReport:
        """Push `bundle` (or "new") to the device in `root`."""
        options = more.pop("options", QUICK)
        options = dataclasses.replace(options, upload=UploadOptions(channels=channels))
        transport = more.pop("transport", None) or HarnessTransport(prelude)
        return push(
            transport,
            self.device(root),
            bundle or self.new,
            options,
            facts=self.facts,
            site=lambda *_: self.site,
            **more,
        )

    def check_and_complete(self, root: Path, expect: Sequence[str] = ("old", "new")) -> str:
        """Check the invariant, push once more, check that this push completes and leaves nothing behind."""
        found = answer(root)
        assert found in expect, found
        self.push(root)
        assert answer(root) == "new" and leftovers(root) == []
        subprocess.run(["rm", "-rf", str(root)], check=True)
        return found


def make_stage(folder: Path, *, weights_bytes: int = 300_000, n_files: int = 3, shared: bool = False) -> Stage:
    """Make a stage; with `shared` the new weights are the old ones with one chunk changed."""
    folder.mkdir(exist_ok=True)
    site = make_site(folder / "site", n_files=n_files)
    seed = random.SystemRandom().getrandbits(60)
    old = make_bundle(folder / "old", marker="old", weights_bytes=weights_bytes, seed=seed)
    new = make_bundle(
        folder / "new",
        marker="new",
        weights_bytes=weights_bytes,
        seed=seed if shared else seed + 1,
        changed="layers." if shared else "",
    )
    root = folder / "template"
    device = Device(name="localhost", transport="local", root=str(root), python=sys.executable)
    stage = Stage(folder, gather_facts(LocalTransport(), device), site, old, new, root)
    stage.push(root, old)
    assert answer(root) == "old"
    return stage


def wait_until_unlocked(root: Path, limit_s: float = 30.0) -> bool:
    """Wait until a receiver that is ending has given the lock back."""
    deadline = time.monotonic() + limit_s
    while (root / "lock").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not (root / "lock").exists()


def choose_seed() -> int:
    """The seed of this run's samples; pytest shows it when a test fails. EDGEAWQ_FAULTS_SEED repeats a run."""
    seed = int(os.environ.get("EDGEAWQ_FAULTS_SEED") or random.SystemRandom().getrandbits(32))
    print(f"EDGEAWQ_FAULTS_SEED={seed}")
    return seed


def sample(cases: Sequence[T], count: int) -> list[T]:
    """Return `count` of the cases, chosen anew in each run; all of them with EDGEAWQ_FAULTS=all."""
    if ALL or count >= len(cases):
        return list(cases)
    return random.Random(choose_seed()).sample(list(cases), count)


@contextlib.contextmanager
def case(kind: str, checked: str) -> Iterator[None]:
    """One case of a kind of fault; counted in the file that EDGEAWQ_RELIABILITY_REPORT names, if it went well."""
    yield
    report = os.environ.get("EDGEAWQ_RELIABILITY_REPORT")
    if report:
        with open(report, "a+", encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.seek(0)
            found: dict[str, Any] = json.loads(stream.read() or "{}")
            entry = found.setdefault(kind, {"cases": 0, "checked": checked})
            entry["cases"] += 1
            stream.truncate(0)
            stream.write(json.dumps(found, indent=1, sort_keys=True))


def run_cases(kind: str, checked: str, cases: Sequence[T], run: Callable[[T], object]) -> None:
    """Run a sample of cases one after the other; the one that fails is named."""
    for entry in cases:
        print(f"{kind}: {entry!r}")
        with case(kind, checked):
            run(entry)
