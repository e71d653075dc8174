"""SIGKILL of the host, of the receiver and of a further channel's process at every remote operation of a push."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgeawq.errors import EdgeawqError
from tests.deploy.faults.events import EventTransport, list_event_cases
from tests.deploy.faults.harness import Stage, run_cases, sample

CHECKED = "the device runs wholly the old or the new release and answers; the next push completes, no leftovers"


def push_in_process(
    stage: Stage, root: Path, target: int, moment: str, channels: int
) -> subprocess.CompletedProcess[str]:
    request = {"root": str(root), "bundle": str(stage.new), "site": str(stage.site), "channels": channels}
    command = [sys.executable, "-m", "tests.deploy.faults.killed_host"]
    return subprocess.run(
        [*command, json.dumps({**request, "target": target, "moment": moment})], capture_output=True, text=True
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_the_host_is_killed(wide_stage: Stage, channels: int) -> None:
    whole = push_in_process(wide_stage, wide_stage.fresh(), -1, "", channels)
    assert whole.returncode == 0, whole.stderr
    events = json.loads(whole.stdout)["events"]
    assert ("channel write" in events) == (channels > 1) and len(events) > 30

    def run(entry: tuple[int, str, str]) -> None:
        root = wide_stage.fresh()
        killed = push_in_process(wide_stage, root, entry[0], entry[2], channels)
        # Reads come in blocks of any size, so there may be fewer of them than the last time.
        assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
        wide_stage.check_and_complete(root)

    cases = sample(list_event_cases(events), 6)
    run_cases(f"host killed at a remote operation ({channels} channels)", CHECKED, cases, run)


def kill_and_look(transport: EventTransport, kind: str) -> None:
    """Kill the process of a kind, if it is there by now, and wait until it is gone."""
    process: Any = transport.find(kind)
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                return
            if state == "Z":
                return


@pytest.mark.parametrize(("kind", "channels"), [("receiver", 1), ("receiver", 3), ("channel", 3)])
def test_a_process_on_the_device_is_killed(wide_stage: Stage, kind: str, channels: int) -> None:
    transport = EventTransport(-1, "", lambda transport, process: None)
    wide_stage.push(wide_stage.fresh(), channels=channels, transport=transport)

    def run(entry: tuple[int, str, str]) -> None:
        root = wide_stage.fresh()
        killing = EventTransport(entry[0], entry[2], lambda transport, process: kill_and_look(transport, kind))
        with contextlib.suppress(EdgeawqError):
            wide_stage.push(root, channels=channels, transport=killing)
        wide_stage.check_and_complete(root)

    cases = list_event_cases(transport.events)
    if kind == "channel":  # only from where there is one, to where it is done
        numbers = [number for number, name in enumerate(transport.events) if name.startswith("channel")]
        cases = [entry for entry in cases if numbers[0] <= entry[0] <= numbers[-1] + 2]
    run_cases(f"{kind} killed at a remote operation ({channels} channels)", CHECKED, sample(cases, 6), run)
