"""A release whose health check hangs, crashes, lies or prints without end."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from edgeawq.errors import HealthCheckError
from tests.deploy.fakes import make_bundle
from tests.deploy.faults.harness import QUICK, Stage, case
from tests.deploy.invariants import answer, current_release

BAD = ["fail", "crash", "hang", "endless", "closes", "stops", "dies", "silent", "lies", "odd", "leaves a child"]
SLOW = {"hang", "endless", "closes", "stops", "leaves a child"}


def processes_in(root: Path) -> list[str]:
    """Processes that were started from a release in `root`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if str(root).encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_text())
            except OSError:
                continue
    return found


@pytest.mark.parametrize("behave", BAD)
def test_it_is_never_switched_on(stage: Stage, tmp_path: Path, behave: str) -> None:
    checked = (
        "HealthCheckError; the old release stays, runs and answers; nothing is left running; the next push completes"
    )
    with case("bad health check", checked):
        root = stage.fresh()
        before = current_release(root)
        bad = make_bundle(tmp_path / "bad", marker="bad", behave=behave)
        timeout_s = 1.5 if behave in SLOW else 60.0
        with pytest.raises(HealthCheckError, match="did not end within" if behave in SLOW else "failed"):
            stage.push(root, bad, options=dataclasses.replace(QUICK, health_timeout_s=timeout_s))
        assert answer(root) == "old" and current_release(root) == before
        deadline = time.monotonic() + 10
        while processes_in(root) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes_in(root) == []
        stage.check_and_complete(root, ("old",))
