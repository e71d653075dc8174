from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest

from edgeawq.deploy.inventory import Device
from edgeawq.deploy.local import LocalTransport
from edgeawq.deploy.push import PrepareSite, PushOptions, PushReport, SilentListener, push
from edgeawq.deploy.receiver_client import Missing
from edgeawq.deploy.release import ReleaseFile, describe_release, hash_file, list_bundle
from edgeawq.deploy.transport import RemoteProcess
from edgeawq.deploy.upload import MAX_CHANNELS, WRITE_BYTES, UploadOptions, _Work, choose_channels, list_pieces
from edgeawq.errors import BundleError, TransferError
from tests.deploy.fakes import make_bundle, make_site
from tests.deploy.invariants import answer, leftovers
from tests.deploy.sshd import SshServer

MB = 1_000_000


class CountedProcess:
    """A process whose bytes are counted in both directions."""

    def __init__(self, process: RemoteProcess, transport: CountingTransport) -> None:
        self._process = process
        self._transport = transport
        self.sent = 0
        self.received = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)

    def write(self, data: bytes | memoryview) -> None:
        self._process.write(data)
        with self._transport.lock:
            self.sent += len(data)
            self._transport.sent += len(data)

    def read(self, size: int) -> bytes:
        block = self._process.read(size)
        with self._transport.lock:
            self.received += len(block)
            self._transport.received += len(block)
        return block


class CountingTransport(LocalTransport):
    """This machine, with all bytes of all channels counted: commands, what goes in, what comes out."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sent = 0
        self.received = 0
        self.processes: list[CountedProcess] = []

    def start(self, command: str, **more: Any) -> RemoteProcess:
        self.sent += len(command)
        self.processes.append(CountedProcess(super().start(command, **more), self))
        return self.processes[-1]


def send(device: Device, bundle: Path, site: PrepareSite, **upload: Any) -> tuple[PushReport, CountingTransport]:
    transport = CountingTransport()
    options = PushOptions(health_timeout_s=60, upload=UploadOptions(**upload))
    return push(transport, device, bundle, options, site=site), transport


def hash_tree(root: Path) -> dict[str, tuple[int, str]]:
    """Everything below store/ and releases/: permissions and content."""
    found = {}
    for folder in ("store", "releases"):
        for path in (root / folder).rglob("*"):
            if "__pycache__" in path.parts:
                continue  # Python's own, with the folder's path in it
            content = path.read_bytes() if path.is_file() else b""
            found[str(path.relative_to(root))] = (path.stat().st_mode, hashlib.sha256(content).hexdigest())
    return found


def test_four_channels_and_one_give_the_same_store(tmp_path: Path, site: PrepareSite) -> None:
    bundle = make_bundle(tmp_path / "bundle", weights_bytes=24 * MB)  # six chunks
    trees = []
    for number, (channels, compression) in enumerate([(1, "never"), (4, "never"), (3, "always"), (1, "always")]):
        root = tmp_path / f"root{number}"
        device = Device(name="localhost", transport="local", root=str(root), python=sys.executable)
        report, _ = send(device, bundle, site, channels=channels, compression=compression)
        assert report.channels == channels and report.bytes_sent > 24 * MB
        assert answer(root) == "one" and leftovers(root) == []
        trees.append(hash_tree(root))
    assert trees[0] == trees[1] == trees[2] == trees[3] and len(trees[0]) > 30


def test_four_channels_over_ssh(server: SshServer, tmp_path: Path, site: PrepareSite) -> None:
    from edgeawq.deploy.connect import connect

    device = server.device(root=str(tmp_path / "root"))
    bundle = make_bundle(tmp_path / "bundle", weights_bytes=40 * MB)
    with connect(device) as transport:
        options = PushOptions(health_timeout_s=60, upload=UploadOptions(channels=4))
        report = push(transport, device, bundle, options, site=site)
    assert report.channels == 4 and answer(tmp_path / "root") == "one" and leftovers(tmp_path / "root") == []


def test_an_unchanged_push_sends_next_to_nothing(local_device: Device, tmp_path: Path) -> None:
    folder = make_site(tmp_path / "site", n_files=2000)
    bundle = make_bundle(tmp_path / "bundle", weights_bytes=40 * MB)
    first, _ = send(local_device, bundle, lambda *_: folder)
    again, transport = send(local_device, bundle, lambda *_: folder)
    assert not again.changed and again.bytes_sent == 0 and first.files > 2000
    assert transport.sent + transport.received < 100_000, (transport.sent, transport.received)


def test_a_changed_layer_sends_its_tensors_and_little_more(local_device: Device, tmp_path: Path) -> None:
    folder = make_site(tmp_path / "site")
    old = make_bundle(tmp_path / "old", seed=5, n_layers=6, hidden_size=1024)
    new = make_bundle(tmp_path / "new", seed=5, n_layers=6, hidden_size=1024, changed="layers.3.")
    manifest = json.loads((new / "manifest.json").read_text())
    changed = sum(tensor["nbytes"] for tensor in manifest["tensors"] if tensor["name"].startswith("layers.3."))
    total = (new / "weights.bin").stat().st_size
    assert 5 * MB < changed < total / 5
    send(local_device, old, lambda *_: folder)
    report, transport = send(local_device, new, lambda *_: folder)
    assert changed <= report.bytes_sent <= changed * 1.02
    assert transport.sent + transport.received <= changed * 1.02 + 50_000  # the program and the description
    assert report.copied_bytes == total - changed
    assert answer(Path(local_device.root)) == "one" and leftovers(Path(local_device.root)) == []


def test_one_large_tensor_that_changed_is_sent_alone(local_device: Device, tmp_path: Path, site: PrepareSite) -> None:
    old = make_bundle(tmp_path / "old", seed=5, n_layers=1, hidden_size=2048)
    name = max(json.loads((old / "manifest.json").read_text())["tensors"], key=lambda tensor: tensor["nbytes"])
    new = make_bundle(tmp_path / "new", seed=5, n_layers=1, hidden_size=2048, changed=name["name"])
    assert name["nbytes"] > 4 * MB
    send(local_device, old, site)
    report, _ = send(local_device, new, site)
    assert name["nbytes"] <= report.bytes_sent <= name["nbytes"] * 1.02


def test_compression_where_it_is_worth_it(local_device: Device, tmp_path: Path, site: PrepareSite) -> None:
    bundle = make_bundle(tmp_path / "bundle", weights_bytes=20 * MB)
    path = bundle / "weights.bin"
    data = bytes(10 * MB) + path.read_bytes()[10 * MB :]
    path.write_bytes(data)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == "weights.bin":
            entry["sha256"] = hashlib.sha256(data).hexdigest()
    golden = json.loads((bundle / "golden.json").read_text())
    (bundle / "golden.json").write_text(json.dumps({**golden, "sum": 0}))
    for entry in manifest["files"]:
        if entry["path"] == "golden.json":
            content = (bundle / "golden.json").read_bytes()
            entry.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    report, _ = send(local_device, bundle, site, compression="always")
    assert report.bytes_sent > 20 * MB and 10 * MB < report.wire_bytes < 12 * MB
    assert answer(Path(local_device.root)) == "one"


class SlowLink:
    """Lets bytes through at a rate, and counts them."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.total = 0
        self.lock = threading.Lock()

    def acquire(self, n_bytes: int) -> None:
        with self.lock:
            self.total += n_bytes
        time.sleep(n_bytes / self.bytes_per_s)


def test_a_limit_holds_for_all_channels(local_device: Device, tmp_path: Path, site: PrepareSite) -> None:
    bundle = make_bundle(tmp_path / "bundle", weights_bytes=20 * MB)
    link = SlowLink(200e6)
    report, _ = send(local_device, bundle, site, channels=2, limiter=link)
    assert link.total == report.wire_bytes > 20 * MB


def test_a_slow_link_is_noticed_and_compressed(local_device: Device, tmp_path: Path, site: PrepareSite) -> None:
    bundle = make_bundle(tmp_path / "bundle", weights_bytes=30 * MB)
    fast, _ = send(local_device, bundle, site, compression="never")
    assert fast.wire_bytes > fast.bytes_sent
    work = make_work(bundle)
    work.sent.wire_bytes = 20 * MB
    work.started = time.monotonic() - 0.1  # 200 MB/s
    assert not work.is_slow()
    work.started = time.monotonic() - 10.0  # 2 MB/s
    assert work.is_slow() and work.compress(bytes(5 * MB)) is not None and work.compress(os.urandom(5 * MB)) is None
    work.sent.wire_bytes = 1 * MB
    assert not work.is_slow(), "too little was sent to know"
    assert work.compress(bytes(100)) is None


def test_what_is_sent_fills_whole_packets(tmp_path: Path) -> None:
    """Small files, large ones and the requests between them share packets; together they are what was asked for."""
    files: list[ReleaseFile] = []
    for number, size in enumerate((0, 10, WRITE_BYTES - 200, 3, 5 * MB + 7, WRITE_BYTES)):
        (tmp_path / str(number)).write_bytes(os.urandom(size))
        files.append(hash_file(f"site/{number}", tmp_path / str(number)))
    release = describe_release(name="n", profile="p", machine="m", python="3.11", files=files)
    missing = [Missing(number, 0, len(file.chunks)) for number, file in enumerate(files)]
    counts: list[int] = []
    work = _Work(release, missing, UploadOptions(compression="never"), counts.append)
    written: list[bytes] = []
    link: Any = types.SimpleNamespace(write=lambda data: written.append(bytes(data)))
    pieces = list(work.pieces)
    work.send(link)
    assert {len(data) for data in written[:-1]} == {WRITE_BYTES} and 0 < len(written[-1]) < WRITE_BYTES
    stream = io.BytesIO(b"".join(written))
    for piece in pieces:
        request = json.loads(stream.readline())
        assert request == {"op": "put", "file": piece.file, "chunk": piece.chunk, "length": piece.length}
        assert stream.read(piece.length) == work.read(piece)
    assert not stream.read() and sum(counts) == release.total_bytes
    assert work.sent.wire_bytes == sum(map(len, written))


def make_work(bundle: Path) -> _Work:
    release = describe_release(name="n", profile="p", machine="m", python="3.11", files=list_bundle(bundle)[1])
    return _Work(release, [], UploadOptions(), lambda count: None)


def test_progress_adds_up_and_never_goes_back(local_device: Device, tmp_path: Path, site: PrepareSite) -> None:
    bundle = make_bundle(tmp_path / "bundle", weights_bytes=30 * MB)

    class Progress(SilentListener):
        announced = 0
        sent = 0

        def upload_begins(self, files: int, total_bytes: int) -> None:
            self.announced = total_bytes

        def upload_advanced(self, count: int) -> None:
            assert count >= 0
            self.sent += count

    listener = Progress()
    options = PushOptions(health_timeout_s=60, upload=UploadOptions(channels=3))
    report = push(LocalTransport(), local_device, bundle, options, site=site, listener=listener)
    assert listener.sent == listener.announced == report.bytes_sent


def test_a_channel_that_dies_ends_the_push_and_the_next_goes_on(
    local_device: Device, tmp_path: Path, site: PrepareSite
) -> None:
    root = Path(local_device.root)
    bundle = make_bundle(tmp_path / "bundle", weights_bytes=60 * MB)
    transport = CountingTransport()

    class Killer(SilentListener):
        def upload_advanced(self, count: int) -> None:
            while not (further := [process for process in transport.processes[2:] if process.received]):
                time.sleep(0.01)  # the upload goes on when the first of them has joined
            for process in further:
                if process.sent > 1 * MB:
                    process.terminate()

    options = PushOptions(health_timeout_s=60, upload=UploadOptions(channels=3))
    with pytest.raises(TransferError):
        push(transport, local_device, bundle, options, site=site, listener=Killer())
    assert not (root / "current").exists()
    report, _ = send(local_device, bundle, site, channels=2)
    assert report.bytes_sent < 60 * MB and answer(root) == "one" and leftovers(root) == []


def test_a_device_that_allows_one_channel_only(local_device: Device, tmp_path: Path, site: PrepareSite) -> None:
    class Narrow(CountingTransport):
        def start(self, command: str, **more: Any) -> RemoteProcess:
            if "send_fds" in command:
                raise TransferError("refused")
            return super().start(command, **more)

    bundle = make_bundle(tmp_path / "bundle", weights_bytes=20 * MB)
    options = PushOptions(health_timeout_s=60, upload=UploadOptions(channels=4))
    assert push(Narrow(), local_device, bundle, options, site=site).channels == 1


@pytest.mark.parametrize("change", ["shorter", "gone"])
def test_a_bundle_that_changes_while_it_is_sent(
    change: str, local_device: Device, tmp_path: Path, site: PrepareSite
) -> None:
    bundle = make_bundle(tmp_path / "bundle", weights_bytes=20 * MB)

    class Changer(SilentListener):
        def upload_begins(self, files: int, total_bytes: int) -> None:
            if change == "shorter":
                os.truncate(bundle / "weights.bin", 10 * MB)
            else:
                (bundle / "weights.bin").unlink()

    with pytest.raises(BundleError, match=r"shorter|cannot be read") as caught:
        options = PushOptions(upload=UploadOptions(channels=2))
        push(LocalTransport(), local_device, bundle, options, site=site, listener=Changer())
    assert "push again" in caught.value.remedy and not (Path(local_device.root) / "current").exists()


@pytest.mark.parametrize(
    ("round_trip_s", "channels"), [(0.0, 2), (0.0005, 2), (0.02, 2), (0.031, 3), (0.05, 4), (0.3, MAX_CHANNELS)]
)
def test_more_channels_for_longer_ways(round_trip_s: float, channels: int) -> None:
    assert choose_channels(round_trip_s, 500 * MB) == channels
    assert choose_channels(round_trip_s, 5 * MB) == 1, "for little, starting another process takes longer"


def test_small_files_come_first(tmp_path: Path) -> None:
    files: list[ReleaseFile] = []
    for name, size in (("a", 9 * MB), ("b", 10), ("c", 5 * MB)):
        (tmp_path / name).write_bytes(bytes(size))
        files.append(hash_file(f"site/{name}", tmp_path / name))
    release = describe_release(name="n", profile="p", machine="m", python="3.11", files=files)
    pieces = list_pieces(release, [Missing(0, 1, 2), Missing(1, 0, 1), Missing(2, 0, 2)])
    assert [(piece.file, piece.chunk) for piece in pieces] == [(1, 0), (2, 0), (2, 1), (0, 1), (0, 2)]
    assert pieces[3].offset == files[0].chunks[0][0] and pieces[4].offset + pieces[4].length == 9 * MB


MEASURE = """
import json, os, resource, sys
from pathlib import Path
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.local import LocalTransport
from edgeawq.deploy.push import PushOptions, push
from edgeawq.deploy.upload import UploadOptions
bundle, site, root = map(Path, sys.argv[1:])
device = Device(name="localhost", transport="local", root=str(root), python=sys.executable)
options = PushOptions(health_timeout_s=60, upload=UploadOptions(channels=4))
report = push(LocalTransport(), device, bundle, options, site=lambda *_: site)
usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([report.total_bytes, *usage]))
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    found = []
    for size in (64 << 20, 320 << 20):
        bundle = make_bundle(tmp_path / f"bundle{size}", zeros=size)
        command = [
            sys.executable,
            "-c",
            MEASURE,
            str(bundle),
            str(site),
            str(tmp_path / f"root{size}"),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
        subprocess.run(["rm", "-rf", str(tmp_path / f"root{size}"), str(bundle)], check=True)
    (small, small_kb, small_device_kb), (large, large_kb, large_device_kb) = found
    assert large > small + 250 * MB
    assert large_kb - small_kb < 32 << 10, (small_kb, large_kb)
    assert large_device_kb - small_device_kb < 32 << 10, (small_device_kb, large_device_kb)
