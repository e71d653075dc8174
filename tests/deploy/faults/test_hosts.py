"""Several hosts push to one device at once."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeawq.deploy.receiver.home import Home
from tests.deploy.fakes import make_bundle
from tests.deploy.faults.harness import ALL, Stage, case, choose_seed, wait_until_unlocked
from tests.deploy.invariants import answer, leftovers

CHECKED = "each host succeeds or is refused by the lock; one whole release runs and answers; the next push completes"


def start_host(stage: Stage, root: Path, bundle: Path, *, channels: int, break_lock: bool) -> subprocess.Popen[str]:
    request = {"root": str(root), "bundle": str(bundle), "site": str(stage.site), "channels": channels}
    request.update(target=-1, moment="", break_lock=break_lock)
    command = [sys.executable, "-m", "tests.deploy.faults.killed_host", json.dumps(request)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("n_hosts", [2, 4])
@pytest.mark.parametrize("break_lock", [False, True])
def test_hosts_at_once(wide_stage: Stage, tmp_path: Path, n_hosts: int, break_lock: bool) -> None:
    source = random.Random(choose_seed())
    bundles = [
        make_bundle(tmp_path / f"m{number}", marker=f"m{number}", weights_bytes=9_000_000) for number in range(n_hosts)
    ]
    for _ in range(8 if ALL else 1):
        kind = f"{n_hosts} hosts at once" + (", each breaking the other's lock" if break_lock else "")
        with case(kind, CHECKED):
            root = wide_stage.fresh()
            hosts = []
            for bundle in bundles:
                channels = source.choice([1, 3])
                hosts.append(start_host(wide_stage, root, bundle, channels=channels, break_lock=break_lock))
                time.sleep(source.random() * 0.5)
            done = [host.communicate(timeout=300) for host in hosts]
            winners = [f"m{number}" for number, host in enumerate(hosts) if host.returncode == 0]
            for host, (_, errors) in zip(hosts, done, strict=True):
                refused = ("DeviceLockedError", "TransferError", "DeployError")
                assert host.returncode == 0 or errors.splitlines()[-1].partition(":")[0].endswith(refused), errors
            assert winners or break_lock
            assert answer(root) in (winners or ["old"])
            assert wait_until_unlocked(root)
            events = [line["op"] for line in Home(str(root)).state()["history"]]
            assert events.count("switch") >= 1
            wide_stage.check_and_complete(root, (*winners, "old"))
            assert leftovers(wide_stage.template) == []
