from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeawq.deploy.device_facts import DeviceFacts, PythonFact
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.local import LocalTransport
from edgeawq.deploy.push import PrepareSite, PushOptions, PushReport, push
from edgeawq.deploy.releases import (
    DeviceStatus,
    choose_release,
    collect_garbage,
    read_status,
    roll_back,
)
from edgeawq.errors import DeployError, HealthCheckError, UsageError
from tests.deploy.fakes import make_bundle
from tests.deploy.invariants import answer, leftovers

KEEP_ALL = PushOptions(keep=100)


@pytest.fixture
def three(local_device: Device, site: PrepareSite, tmp_path: Path) -> list[PushReport]:
    """Three releases pushed one after the other."""
    return [
        push(LocalTransport(), local_device, make_bundle(tmp_path / name, marker=name), KEEP_ALL, site=site)
        for name in ("one", "two", "three")
    ]


def test_an_untouched_device_has_nothing(local_device: Device) -> None:
    status = read_status(LocalTransport(), local_device)
    assert (status.current, status.previous, status.releases, status.lock) == (None, None, [], None)
    assert status.free_bytes > 0 and not Path(local_device.root).exists()


def test_status_lists_the_newest_first(local_device: Device, three: list[PushReport]) -> None:
    status = read_status(LocalTransport(), local_device)
    assert [release["id"] for release in status.releases] == [report.release for report in reversed(three)]
    assert (status.current, status.previous) == (three[2].release, three[1].release)
    assert {release["health"] for release in status.releases} == {"good"}
    assert [(event["from"], event["to"]) for event in status.history] == [
        (None, three[0].release),
        (three[0].release, three[1].release),
        (three[1].release, three[2].release),
    ]
    assert status.find(three[0].release) == status.releases[2] and status.find(None) is None


def test_goes_back_and_forth(local_device: Device, three: list[PushReport]) -> None:
    root = Path(local_device.root)
    report = roll_back(LocalTransport(), local_device)
    assert (report.release, report.previous) == (three[1].release, three[2].release) and answer(root) == "two"
    assert roll_back(LocalTransport(), local_device).release == three[2].release and answer(root) == "three"
    assert roll_back(LocalTransport(), local_device, three[0].release[:6]).health["marker"] == "one"
    assert answer(root) == "one" and leftovers(root) == []


def test_does_not_go_back_to_what_no_longer_works(local_device: Device, three: list[PushReport]) -> None:
    root = Path(local_device.root)
    golden = root / "releases" / three[1].release / "bundle/golden.json"
    golden.chmod(0o644)
    golden.write_text(golden.read_text().replace('"good"', '"fail"'))
    with pytest.raises(HealthCheckError, match=f"goes on with release {three[2].release}"):
        roll_back(LocalTransport(), local_device)
    assert answer(root) == "three"


def test_there_must_be_an_earlier_release(local_device: Device, bundle: Path, site: PrepareSite) -> None:
    with pytest.raises(DeployError, match="no earlier release"):
        roll_back(LocalTransport(), local_device)
    push(LocalTransport(), local_device, bundle, site=site)
    push(LocalTransport(), local_device, bundle, site=site)
    with pytest.raises(DeployError, match="no earlier release"):
        roll_back(LocalTransport(), local_device)


def status_of(*names: str, current: str = "", previous: str = "", history: list[tuple[str, str]] | None = None):
    facts = DeviceFacts("Linux", "x", "h", "/", "", "", 1, 1, 1, 1, "", ())
    events = [{"from": before, "to": after} for before, after in history or []]
    releases = [{"id": name} for name in names]
    return DeviceStatus("d", "a", facts, current or None, previous or None, releases, events, None, 0)


def test_chooses_a_release() -> None:
    status = status_of("aa11", "aa22", "bb33", current="bb33", previous="aa22")
    assert choose_release(status, "") == "aa22"
    assert choose_release(status, "aa1") == "aa11"
    with pytest.raises(UsageError, match="2 releases: aa11, aa22"):
        choose_release(status, "aa")
    with pytest.raises(DeployError, match="no release 'cc'"):
        choose_release(status, "cc")


def test_takes_the_history_when_previous_says_nothing() -> None:
    # As after a cut between the two symlinks: `previous` is `current`.
    history = [("aa11", "aa22"), ("gone", "bb33"), ("bb33", "bb33")]
    status = status_of("aa11", "aa22", "bb33", current="bb33", previous="bb33", history=history)
    assert choose_release(status, "") == "aa11"


def test_starts_the_python_that_the_old_release_needs(
    local_device: Device, three: list[PushReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgeawq.deploy.releases as releases

    status = read_status(LocalTransport(), local_device)
    used: list[str] = []
    real = releases.ReceiverClient
    monkeypatch.setattr(
        releases,
        "ReceiverClient",
        lambda transport, python, root: used.append(python) or real(transport, python=python, root=root),
    )
    facts = releases.gather_facts(LocalTransport(), local_device)
    newer = PythonFact("/usr/bin/python3.99", (3, 99, 0), 64, facts.machine, "glibc-2.40")
    fit = facts.pythons[0]
    now_newer = dataclasses.replace(facts, pythons=(newer,))
    asked: list[str] = []

    def gather(transport: LocalTransport, device: Device) -> DeviceFacts:
        asked.append(device.python)
        return now_newer if device.python == sys.executable else facts

    monkeypatch.setattr(releases, "gather_facts", gather)
    monkeypatch.setattr(releases, "read_status", lambda *_: dataclasses.replace(status, facts=now_newer))
    roll_back(LocalTransport(), local_device)
    assert asked == [f"python{fit.series}"] and used == [fit.path]


def test_garbage_collection_keeps_current_previous_and_the_newest(
    local_device: Device, three: list[PushReport], site: PrepareSite, tmp_path: Path
) -> None:
    root = Path(local_device.root)
    roll_back(LocalTransport(), local_device, three[0].release)  # current: one, previous: three
    (root / "partial" / ("0" * 64)).write_bytes(b"x" * 1000)
    removed, freed = collect_garbage(LocalTransport(), local_device, 2)
    assert removed == [three[1].release] and freed > 300_000
    assert answer(root) == "one" and leftovers(root) == []
    assert collect_garbage(LocalTransport(), local_device, 2) == ([], 0)


def test_garbage_collection_spares_a_release_that_is_running(local_device: Device, three: list[PushReport]) -> None:
    root = Path(local_device.root)
    environment = {**os.environ, "PYTHONPATH": str(root / "releases" / three[0].release / "site")}
    chat = subprocess.Popen(["sleep", "60"], env=environment)
    try:
        assert collect_garbage(LocalTransport(), local_device, 2)[0] == []
        assert (root / "releases" / three[0].release).is_dir()
    finally:
        chat.kill()
        chat.wait()
    deadline = time.monotonic() + 10
    while not collect_garbage(LocalTransport(), local_device, 2)[0]:
        assert time.monotonic() < deadline


def test_the_launcher_runs_the_current_release_wherever_it_is_called(
    local_device: Device, three: list[PushReport], tmp_path: Path
) -> None:
    # A folder that would get in the way of `python3 -m edgeawq` if the working folder came first.
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    launcher = Path(local_device.root) / "bin" / "edgeawq"
    bundle = Path(local_device.root) / "current" / "bundle"
    done = subprocess.run(
        [str(launcher), "chat", str(bundle), "--prompt", "hi"], cwd=tmp_path, capture_output=True, text=True
    )
    if sys.version_info >= (3, 11):
        assert done.stdout == "answer to hi by three\n", done.stderr
    else:
        assert "three" in done.stdout or "shadowed" in done.stderr
