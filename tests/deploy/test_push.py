"""Pushes to a device over a real sshd and to the local device, with everything that can go wrong on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeawq.deploy.connect import connect
from edgeawq.deploy.device_facts import gather_facts
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.push import PrepareSite, PushOptions, PushReport, SilentListener, push
from edgeawq.deploy.receiver_client import ReceiverClient
from edgeawq.deploy.release import list_bundle
from edgeawq.deploy.releases import read_status
from edgeawq.deploy.ssh_process import SshProcess
from edgeawq.errors import (
    BundleError,
    DeployError,
    DeviceLockedError,
    DeviceUnfitError,
    EdgeawqError,
    HealthCheckError,
    TransferError,
)
from tests.deploy.fakes import make_bundle, make_site
from tests.deploy.invariants import answer, current_release, leftovers
from tests.deploy.sshd import SshServer

QUICK = PushOptions(health_timeout_s=60)
LARGE = 12_000_000  # several chunks


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Device]:
    """A device that is reached over SSH."""
    server = SshServer(tmp_path / "sshd")
    yield server.device(root=str(tmp_path / "root"))
    server.stop()


@pytest.fixture(params=["local_device", "remote"])
def device(request: pytest.FixtureRequest) -> Device:
    """The same device, reached directly and over SSH."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Device)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def send(device: Device, bundle: Path, site: PrepareSite, options: PushOptions = QUICK, **more: Any) -> PushReport:
    with connect(device) as transport:
        return push(transport, device, bundle, options, site=site, **more)


def is_unlocked(root: Path) -> bool:
    """Wait until the receiver, which may still be ending, has given the lock back."""
    deadline = time.monotonic() + 20
    while (root / "lock").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not (root / "lock").exists()


def test_first_push_and_a_second_one_with_nothing_new(
    device: Device, bundle: Path, site: PrepareSite, root: Path
) -> None:
    first = send(device, bundle, site)
    assert (first.changed, first.previous, first.files) == (True, None, 20)
    assert first.health["decode_tokens_per_s"] == 12.5
    assert answer(root) == "one" and current_release(root) == first.release and leftovers(root) == []
    second = send(device, bundle, site)
    assert (second.release, second.changed, second.previous) == (first.release, False, first.release)
    assert (second.files_sent, second.bytes_sent) == (0, 0)
    assert answer(root) == "one" and leftovers(root) == []


def test_only_what_changed_is_sent_and_stored(device: Device, site: PrepareSite, root: Path, tmp_path: Path) -> None:
    old = make_bundle(tmp_path / "old", seed=7, marker="old", weights_bytes=LARGE)
    new = make_bundle(tmp_path / "new", seed=7, marker="new", weights_bytes=LARGE)
    first = send(device, old, site)
    second = send(device, new, site)
    assert second.bytes_sent < 10_000 and second.files_sent == 3  # golden.json, the random kernel, manifest.json
    assert second.previous == first.release and answer(root) == "new"
    assert (root / "previous").resolve().name == first.release
    weights = [root / "releases" / name / "bundle/weights.bin" for name in (first.release, second.release)]
    assert weights[0].samefile(weights[1]), "shared content must be there once"


def test_nothing_is_changed_by_a_dry_run(device: Device, bundle: Path, site: PrepareSite, root: Path) -> None:
    report = send(device, bundle, site, dataclasses.replace(QUICK, dry_run=True))
    assert report.dry_run and report.changed and report.files_sent == 19  # of 20; two of them have the same content
    assert not root.exists()
    send(device, bundle, site)
    again = send(device, bundle, site, dataclasses.replace(QUICK, dry_run=True))
    assert not again.changed and again.bytes_sent == 0


@pytest.mark.parametrize("behave", ["fail", "crash", "hang"])
def test_a_release_that_does_not_answer_is_never_switched_on(
    device: Device, bundle: Path, site: PrepareSite, root: Path, tmp_path: Path, behave: str
) -> None:
    good = send(device, bundle, site)
    bad = make_bundle(tmp_path / "bad", behave=behave, marker="bad")
    with pytest.raises(HealthCheckError) as caught:
        send(device, bad, site, dataclasses.replace(QUICK, health_timeout_s=1.5 if behave == "hang" else 60))
    expected = {"fail": "not the expected ones", "crash": "exit code 1", "hang": "did not end within 2 s"}[behave]
    assert expected in caught.value.what and good.release in caught.value.what
    if behave == "crash":
        assert "illegal instruction" in caught.value.remedy
    assert answer(root) == "one" and current_release(root) == good.release
    assert not (root / "previous").exists() and is_unlocked(root)
    with connect(device) as transport:
        status = read_status(transport, device)
    reasons = [entry["reason"] for entry in status.releases if entry.get("health") == "bad"]
    assert len(reasons) == 1 and ("health check" in reasons[0])


def test_first_push_that_fails_leaves_nothing_switched_on(
    local_device: Device, site: PrepareSite, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(HealthCheckError, match="no earlier release"):
        send(local_device, make_bundle(tmp_path / "bad", behave="fail"), site)
    assert not (root / "current").exists()
    send(local_device, make_bundle(tmp_path / "good"), site)
    assert answer(root) == "one" and leftovers(root) == []


def test_a_loud_health_check_is_cut(local_device: Device, site: PrepareSite, root: Path, tmp_path: Path) -> None:
    assert send(local_device, make_bundle(tmp_path / "loud", behave="loud"), site).health["ok"] is True


def test_a_python_that_is_too_old(server: SshServer, bundle: Path, site: PrepareSite, tmp_path: Path) -> None:
    root = tmp_path / "root"
    device = server.device(root=str(root))
    good = send(device, bundle, site)
    python = server.bin / "python3"
    python.unlink()
    python.write_text("#!/bin/sh\necho /usr/bin/python3 3.9.2 64 x86_64 glibc-2.31\n")
    python.chmod(0o755)
    with connect(device) as transport:
        facts = gather_facts(transport, device)
        only_old = dataclasses.replace(facts, pythons=facts.pythons[:1])
        with pytest.raises(DeviceUnfitError, match=r"too old: /usr/bin/python3 3\.9\.2"):
            push(transport, device, bundle, QUICK, site=site, facts=only_old)
    assert current_release(root) == good.release


@pytest.mark.parametrize("ends", ["before it is sent anything", "after"])
def test_a_python_that_turns_out_to_be_too_old(
    server: SshServer, bundle: Path, site: PrepareSite, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    write = SshProcess.write

    def write_late(process: SshProcess, data: bytes | memoryview) -> None:
        process._channel.status_event.wait(30)
        write(process, data)

    if ends != "after":
        monkeypatch.setattr(SshProcess, "write", write_late)
    lying = server.bin / "old-python"
    describe = f"{lying} 3.11.2 64 {os.uname().machine} glibc-2.36"
    lying.write_text(f'#!/bin/sh\ncase "$3" in *libc_ver*) echo "{describe}";; *) exit 97;; esac\n')
    lying.chmod(0o755)
    with pytest.raises(DeviceUnfitError, match=r"older than Python 3\.10"):
        send(server.device(python=str(lying)), bundle, site)


def test_a_bundle_for_another_machine_is_refused_before_the_first_byte(
    local_device: Device, site: PrepareSite, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(DeviceUnfitError, match="the bundle is for riscv64") as caught:
        send(local_device, make_bundle(tmp_path / "other", machine="riscv64"), site)
    assert "profile" in caught.value.remedy and not root.exists()


def test_a_model_larger_than_the_memory_is_refused(local_device: Device, bundle: Path, site: PrepareSite) -> None:
    with connect(local_device) as transport:
        facts = gather_facts(transport, local_device)
        small = dataclasses.replace(facts, memory_bytes=200_000)
        with pytest.raises(DeviceUnfitError, match="the memory 0 MB"):
            push(transport, local_device, bundle, QUICK, site=site, facts=small)
        tight = dataclasses.replace(facts, memory_bytes=400_000)
        assert "little is left" in push(transport, local_device, bundle, QUICK, site=site, facts=tight).warnings[0]


def test_a_damaged_bundle_is_refused(local_device: Device, bundle: Path, site: PrepareSite, root: Path) -> None:
    weights = bundle / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(TransferError, match="hash") as caught:
        send(local_device, bundle, site)
    assert "pack it anew" in caught.value.remedy
    assert not (root / "current").exists() and is_unlocked(root)
    weights.write_bytes(data[:-1])
    with pytest.raises(BundleError, match="the manifest says"):
        send(local_device, bundle, site)


def test_a_large_damaged_bundle_is_refused(local_device: Device, site: PrepareSite, root: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "large", weights_bytes=LARGE)
    good = (bundle / "weights.bin").read_bytes()
    (bundle / "weights.bin").write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
    with pytest.raises(BundleError, match="damaged"):
        send(local_device, bundle, site)
    assert not root.exists()
    (bundle / "weights.bin").write_bytes(good)
    send(local_device, bundle, site)
    assert answer(root) == "one"
    # The chunks are on record now; what changes afterwards, the device refuses.
    (root / "current/bundle/weights.bin").resolve().unlink()
    next(path for path in (root / "store").rglob("*") if path.is_file() and path.stat().st_size == LARGE).unlink()
    (bundle / "weights.bin").write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
    with pytest.raises(TransferError, match="hash"):
        send(local_device, bundle, site)


def test_a_full_disk(site: PrepareSite, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip(f"mounting a small tmpfs is not allowed here: {done.stderr.decode()}")
    try:
        root = disk / "root"
        device = Device(name="board", transport="local", root=str(root), python=sys.executable)
        good = send(device, make_bundle(tmp_path / "good", marker="good"), site)
        large = make_bundle(tmp_path / "large", weights_bytes=60_000_000)
        # Seen before the first byte …
        with pytest.raises(DeviceUnfitError, match="needed") as caught:
            send(device, large, site)
        assert "edgeawq gc" in caught.value.remedy
        # … and when somebody else fills the disk during the upload.
        filler = disk / "filler"
        bundle = make_bundle(tmp_path / "fits", weights_bytes=15_000_000)

        class Filler(SilentListener):
            def upload_begins(self, files: int, total_bytes: int) -> None:
                with contextlib.suppress(OSError), filler.open("wb") as stream:
                    while True:
                        stream.write(bytes(1 << 16))
                        stream.flush()

        with pytest.raises(DeviceUnfitError, match="disk is full"):
            send(device, bundle, site, listener=Filler())
        filler.unlink()
        assert answer(root) == "good" and current_release(root) == good.release
        assert sum(entry.stat().st_blocks for entry in (root / "partial").iterdir()) == 0, "it must not stay full"
        send(device, bundle, site)
        assert answer(root) == "one" and leftovers(root) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_read_only_folder_is_named(local_device: Device, bundle: Path, site: PrepareSite, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeployError, match=r"Not a directory|File exists"):
        send(dataclasses.replace(local_device, root=str(tmp_path / "file")), bundle, site)
    with pytest.raises(DeployError, match="/proc/edgeawq"):
        send(dataclasses.replace(local_device, root="/proc/edgeawq"), bundle, site)


# ---- two at once


def hold_lock(device: Device) -> tuple[Any, ReceiverClient]:
    transport = connect(device)
    client = ReceiverClient(transport, python=device.python or "python3", root=device.root)
    client.call("lock", owner="someone@else")
    return transport, client


def test_a_second_push_finds_the_lock(
    device: Device, bundle: Path, site: PrepareSite, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeawq.deploy.push.LOCK_WAIT_S", 0.1)
    transport, client = hold_lock(device)
    with transport:
        with pytest.raises(DeviceLockedError, match="locked by someone@else for [0-9]+ s") as caught:
            send(device, bundle, site)
        assert "--break-lock" in caught.value.remedy
        client.call("unlock")
        send(device, bundle, site)
        client.close()
    assert answer(root) == "one"


def test_a_broken_lock_fences_its_former_owner(device: Device, bundle: Path, site: PrepareSite, root: Path) -> None:
    first = send(device, bundle, site)
    transport, client = hold_lock(device)
    with transport:
        send(device, bundle, site, dataclasses.replace(QUICK, break_lock=True))
        client.call("check", release=first.release, timeout_s=30)
        with pytest.raises(DeviceLockedError, match="lost the device lock"):
            client.call("switch", release=first.release)
        with pytest.raises(DeviceLockedError, match="lost the device lock"):
            client.call("gc", keep=1)
        client.close()
    assert answer(root) == "one" and "lock-broken" in (root / "log").read_text()


@pytest.mark.parametrize("change", [{"pid": 2**22 + 5}, {"pid_start": "1"}, {"boot_id": "another boot"}])
def test_the_lock_of_a_dead_process_is_replaced(
    local_device: Device, bundle: Path, site: PrepareSite, tmp_path: Path, change: dict[str, Any]
) -> None:
    root = Path(local_device.root)
    transport, client = hold_lock(local_device)
    with transport:
        owner = json.loads((root / "lock" / "owner.json").read_text())
        (root / "lock" / "owner.json").write_text(json.dumps({**owner, **change}))
        notes: list[str] = []

        class Notes(SilentListener):
            def note(self, text: str) -> None:
                notes.append(text)

        send(local_device, bundle, site, listener=Notes())
        assert "someone@else" in notes[0] and "stale" in notes[0]
        client.close()


def test_many_pushes_at_once_end_with_one_whole_release(
    local_device: Device, site: PrepareSite, tmp_path: Path
) -> None:
    bundles = {f"m{number}": make_bundle(tmp_path / f"m{number}", marker=f"m{number}") for number in range(4)}
    outcomes: dict[str, object] = {}

    def run(marker: str) -> None:
        try:
            outcomes[marker] = send(local_device, bundles[marker], site)
        except EdgeawqError as error:
            outcomes[marker] = error

    threads = [threading.Thread(target=run, args=(marker,)) for marker in bundles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [marker for marker, outcome in outcomes.items() if isinstance(outcome, PushReport)]
    assert done and all(isinstance(outcome, (PushReport, DeviceLockedError)) for outcome in outcomes.values())
    assert answer(Path(local_device.root)) in done


# ---- killed


def as_json(device: Device) -> dict[str, Any]:
    return dataclasses.asdict(device)


STAGES = ["checking", "preparing", "uploading", "verifying", "health check"]
KILLS = [f"stage:{text}" for text in STAGES] + [f"bytes:{count}" for count in (1, 4_000, 5_000_000, LARGE)]


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_push_and_a_second_one(remote: Device, root: Path, tmp_path: Path, kill: str) -> None:
    folder = make_site(tmp_path / "site")
    good = send(remote, make_bundle(tmp_path / "old", marker="old"), lambda *_: folder)
    new = make_bundle(tmp_path / "new", marker="new", weights_bytes=LARGE)
    request = {"device": as_json(remote), "bundle": str(new), "site": str(folder), "kill": kill}
    command = [sys.executable, "-m", "tests.deploy.push_script", json.dumps(request)]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert answer(root) == "old" and current_release(root) == good.release
    report = send(remote, new, lambda *_: folder)
    assert answer(root) == "new" and report.previous == good.release and leftovers(root) == []
    if kill == f"bytes:{LARGE}" or kill in ("stage:verifying", "stage:health check"):
        assert report.bytes_sent < LARGE // 2, "what has arrived must not be sent again"


OPERATIONS = ["lock", "status", "plan", "assemble", "ping", "flush", "commit", "check", "switch", "gc", "unlock"]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_killed_receiver_and_a_second_push(
    local_device: Device,
    site: PrepareSite,
    tmp_path: Path,
    operation: str,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = Path(local_device.root)
    send(local_device, make_bundle(tmp_path / "old", marker="old"), site)
    new = make_bundle(tmp_path / "new", marker="new", weights_bytes=LARGE)
    real_call = ReceiverClient.call

    def kill(client: ReceiverClient, delay_s: float) -> None:
        child = client.link.process._child.pid  # type: ignore[attr-defined]

        def strike() -> None:
            with contextlib.suppress(ProcessLookupError):  # a quick push may be over by then
                os.kill(child, signal.SIGKILL)

        timer = threading.Timer(delay_s, strike)
        timer.start()
        if not delay_s:
            timer.join()
            time.sleep(0.05)

    def call(client: ReceiverClient, op: str, payload: bytes = b"", **arguments: Any) -> dict[str, Any]:
        if op == operation:
            kill(client, 0.0 if moment == "before" else 0.001)
        return real_call(client, op, payload, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ReceiverClient, "call", call)
        # "during" is a race by design: a quick operation may be done before it is hit.
        with contextlib.suppress(TransferError):
            send(local_device, new, site)
            assert moment == "during"
    assert answer(root) in ("old", "new")
    if operation in OPERATIONS[:8]:
        assert answer(root) == "old"
    send(local_device, new, site)
    assert answer(root) == "new" and leftovers(root) == []


def test_ctrl_c_during_the_upload_lets_go_of_the_lock(
    device: Device, bundle: Path, site: PrepareSite, root: Path, tmp_path: Path
) -> None:
    send(device, bundle, site)

    class Impatient(SilentListener):
        def upload_advanced(self, count: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send(device, make_bundle(tmp_path / "new", weights_bytes=LARGE), site, listener=Impatient())
    assert is_unlocked(root) and answer(root) == "one"


def test_an_upload_goes_on_where_it_was_cut(
    device: Device, bundle: Path, site: PrepareSite, root: Path, tmp_path: Path
) -> None:
    new = make_bundle(tmp_path / "new", marker="new", weights_bytes=4 * LARGE)

    class Cut(SilentListener):
        sent = 0

        def upload_advanced(self, count: int) -> None:
            self.sent += count
            if self.sent > 2 * LARGE:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send(device, new, site, listener=Cut())
    partial = [entry for entry in (root / "partial").iterdir() if len(entry.name) == 64]
    assert len(partial) == 1
    notes: list[str] = []

    class Notes(SilentListener):
        def note(self, text: str) -> None:
            notes.append(text)

    report = send(device, new, site, listener=Notes())
    assert 0 < report.bytes_sent < 3 * LARGE and "are on the device already" in notes[0]
    assert answer(root) == "new"


def test_a_partial_file_with_wrong_bytes_is_sent_anew(
    local_device: Device, site: PrepareSite, root: Path, tmp_path: Path
) -> None:
    new = make_bundle(tmp_path / "new", marker="new", weights_bytes=LARGE)
    weights = next(file for file in list_bundle(new)[1] if file.path == "bundle/weights.bin")
    length = weights.chunks[0][0]
    assert len(weights.chunks) > 2
    (root / "partial").mkdir(parents=True)
    # A power cut can leave zeros at the end of a file that was being written.
    (root / "partial" / weights.name).write_bytes(weights.source.read_bytes()[: length + length // 2] + bytes(1000))
    report = send(local_device, new, site)
    assert LARGE - length < report.bytes_sent < LARGE - length + 20_000, "one chunk was right"
    assert answer(root) == "new" and leftovers(root) == []


# ---- damage on the device


def damage(path: Path, *, rot: bool = True) -> None:
    """Flip a bit. rot: as a failing disk does it, without a trace; else as somebody does who writes to the file."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.chmod(0o644)
    path.write_bytes(data)
    if rot:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_damage_that_the_health_check_notices_is_repaired(
    local_device: Device, bundle: Path, site: PrepareSite, root: Path, tmp_path: Path
) -> None:
    send(local_device, bundle, site)
    damage(root / "current/site/edgeawq/__main__.py")
    # The next release shares the damaged file.
    report = send(local_device, make_bundle(tmp_path / "two", marker="two"), site)
    assert report.repaired == ["site/edgeawq/__main__.py"]
    assert answer(root) == "two"


def test_what_somebody_has_written_to_is_replaced(
    local_device: Device, bundle: Path, site: PrepareSite, root: Path
) -> None:
    first = send(local_device, bundle, site)
    damage(root / "current/bundle/weights.bin", rot=False)
    report = send(local_device, bundle, site)
    assert report.repaired == ["bundle/weights.bin"] and report.release == first.release
    assert report.health["ok"] is True and answer(root) == "one"


def test_nothing_is_checked_again_when_nothing_has_changed(
    local_device: Device, bundle: Path, site: PrepareSite, root: Path
) -> None:
    send(local_device, bundle, site)
    again = send(local_device, bundle, site)
    assert (again.health, again.health_s, again.bytes_sent, again.changed) == ({}, 0.0, 0, False)
    assert send(local_device, bundle, site, dataclasses.replace(QUICK, verify=True)).health["ok"] is True


def test_verify_finds_what_the_health_check_does_not(
    local_device: Device, bundle: Path, site: PrepareSite, root: Path
) -> None:
    send(local_device, bundle, site)
    damage(root / "current/bundle/weights.bin")
    (root / "current/site/package/part0/module3.py").unlink()
    assert send(local_device, bundle, site).repaired == ["site/package/part0/module3.py"]
    report = send(local_device, bundle, site, dataclasses.replace(QUICK, verify=True))
    assert report.repaired == ["bundle/weights.bin"] and report.bytes_sent > 0
    assert answer(root) == "one"


def test_a_damaged_release_description_is_written_again(
    local_device: Device, bundle: Path, site: PrepareSite, root: Path
) -> None:
    send(local_device, bundle, site)
    (root / "current/release.json").write_text("{}")
    send(local_device, bundle, site)
    assert answer(root) == "one"


def test_damaged_state_is_no_obstacle(local_device: Device, bundle: Path, site: PrepareSite, root: Path) -> None:
    send(local_device, bundle, site)
    (root / "state.json").write_text('{"releases": [1], "sequence": "x", "history": {}}')
    (root / "lock.token").write_text("{")
    send(local_device, bundle, site)
    assert answer(root) == "one" and json.loads((root / "state.json").read_text())["sequence"] >= 1


# ---- room


def test_old_releases_are_removed_but_never_current_and_previous(
    local_device: Device, site: PrepareSite, root: Path, tmp_path: Path
) -> None:
    reports = [
        send(local_device, make_bundle(tmp_path / f"m{n}", marker=f"m{n}"), site, dataclasses.replace(QUICK, keep=2))
        for n in range(4)
    ]
    assert reports[2].removed_releases == [reports[0].release]
    kept = {entry.name for entry in (root / "releases").iterdir()}
    assert kept == {reports[2].release, reports[3].release} and leftovers(root) == []
    assert answer(root) == "m3" and (root / "previous").resolve().name == reports[2].release
