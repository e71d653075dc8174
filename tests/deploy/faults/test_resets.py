"""The connection is reset after a random number of bytes, in front of a real sshd."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from pathlib import Path

import pytest

from edgeawq.deploy.connect import connect
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.push import PushReport, push
from edgeawq.deploy.upload import UploadOptions
from edgeawq.errors import EdgeawqError
from tests.deploy.faults.harness import ALL, QUICK, Stage, choose_seed, run_cases, wait_until_unlocked
from tests.deploy.faults.proxy import ResettingProxy
from tests.deploy.invariants import answer, leftovers
from tests.deploy.sshd import SshServer

CHECKED = "an error, no traceback; the running release stays and answers; the next push completes, no leftovers"


def push_through(stage: Stage, device: Device, channels: int) -> PushReport:
    options = dataclasses.replace(QUICK, upload=UploadOptions(channels=channels))
    with connect(device) as transport:
        return push(transport, device, stage.new, options, facts=stage.facts, site=lambda *_: stage.site)


def trust_proxy(server: SshServer, proxy: ResettingProxy) -> None:
    kind, key = server.host_key.with_suffix(".pub").read_text().split()[:2]
    with server.known_hosts.open("a") as stream:
        stream.write(f"[127.0.0.1]:{proxy.port} {kind} {key}\n")


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("channels", [1, 4])
def test_resets(wide_stage: Stage, server: SshServer, tmp_path: Path, direction: str, channels: int) -> None:
    device = server.device(root=str(wide_stage.fresh()))
    counting = ResettingProxy(server.port)
    trust_proxy(server, counting)
    with contextlib.closing(counting):
        push_through(wide_stage, dataclasses.replace(device, port=counting.port), channels)
    total = counting.passed[direction]
    assert total > (13_000_000 if direction == "up" else 3000)
    source = random.Random(choose_seed())
    # Half of them in the conversation before and after the content, which is small and has most of the steps.
    limits = [source.randrange(total) if number % 2 else source.randrange(40_000) for number in range(60 if ALL else 4)]

    def is_cut(root: Path, limit: int) -> bool:
        proxy = ResettingProxy(server.port, direction=direction, limit=limit)
        trust_proxy(server, proxy)
        with contextlib.closing(proxy):
            try:
                push_through(wide_stage, server.device(root=str(root), port=proxy.port), channels)
            except EdgeawqError:
                return True
        return False

    def run(limit: int) -> None:
        root = wide_stage.fresh()
        while not is_cut(root, limit):
            # What the device sends differs from run to run: sshd says how much it has taken as it finds the time.
            assert limit > 0.98 * total or (direction == "down" and limit > 0.5 * total), "it has not come to a reset"
            limit = limit * 9 // 10
            root = wide_stage.fresh()
        assert answer(root) in ("old", "new")
        assert wait_until_unlocked(root), "the receiver must notice that the host has gone"
        push_through(wide_stage, server.device(root=str(root)), channels)
        assert answer(root) == "new" and leftovers(root) == []

    run_cases(f"connection reset at a random byte ({direction}, {channels} channels)", CHECKED, limits, run)
