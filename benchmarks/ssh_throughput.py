"""Rate of the SSH transports alone, next to scp with the same cipher, in turns; also through a slow network.

Run: python -m benchmarks.ssh_throughput [--megabytes 500] [--rounds 5] [--round-trip-ms 0] [--channels 1,2,4]
                                         [--cipher aes128-gcm@openssh.com] [--openssh] [--sync]

What arrives is hashed and written to a file by a Python there, as the receiver does; with --sync it is fsynced, too,
which scp does not do. Client, sshd and sink share this machine's cores: the ratios say something, the rates are not
those of a real network.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.delay_proxy import run_delay_proxy
from edgeawq.deploy.connect import connect
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.transport import Transport, quote_words
from tests.deploy.sshd import SshServer

WRITE_BYTES = 1 << 20
SINK = """
import hashlib, os, sys
state, block = hashlib.sha256(), bytearray(1 << 20)
with open(sys.argv[1], "wb", 0) as file:
    while count := sys.stdin.buffer.raw.readinto(block):
        state.update(memoryview(block)[:count])
        file.write(memoryview(block)[:count])
    if sys.argv[2] == "sync":
        os.fsync(file.fileno())
print(state.hexdigest())
"""


def send_parts(transport: Transport, data: bytes, n_channels: int, folder: Path, sync: str) -> float:
    """Send `data` in `n_channels` parts at the same time; return the seconds until all are hashed and on disk."""
    share = -(-len(data) // n_channels)
    parts = [memoryview(data)[start : start + share] for start in range(0, len(data), share)]
    digests = [hashlib.sha256(part).hexdigest() for part in parts]
    failures: list[str] = []

    def send(number: int) -> None:
        process = transport.start(quote_words(["python3", "-c", SINK, str(folder / f"part{number}"), sync]))
        part = parts[number]
        for start in range(0, len(part), WRITE_BYTES):
            process.write(part[start : start + WRITE_BYTES])
        process.close_input()
        answer = process.read(100).decode().strip()
        process.wait()
        if answer != digests[number]:
            failures.append(f"part {number}: {answer}")

    began = time.perf_counter()
    threads = [threading.Thread(target=send, args=(number,)) for number in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if failures:
        raise SystemExit("; ".join(failures))
    return seconds


def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Return name → MB/s of each round."""
    results: dict[str, list[float]] = {}
    channels = [int(number) for number in arguments.channels.split(",")]
    transports = ["ssh", "openssh"] if arguments.openssh else ["ssh"]
    with tempfile.TemporaryDirectory(prefix="edgeawq-bench-") as scratch:
        folder = Path(scratch)
        os.environ["HOME"] = str(folder)  # no key, agent or known_hosts of the user's is used
        source = folder / "source"
        data = os.urandom(arguments.megabytes * 1_000_000)
        source.write_bytes(data)
        server = SshServer(
            folder / "sshd", extra_config=f"Subsystem sftp internal-sftp\nCiphers {arguments.cipher}\nMaxSessions 20"
        )
        try:
            with _reach(server.device(), arguments.round_trip_ms / 1000) as device:
                server.known_hosts.write_text(
                    server.known_hosts.read_text().replace(str(server.port), str(device.port))
                )
                for _ in range(arguments.rounds):
                    seconds = _time_scp(device, source, folder / "copy", arguments.cipher)
                    results.setdefault("scp", []).append(arguments.megabytes / seconds)
                    for kind in transports:
                        with connect(replace(device, transport=kind)) as transport:
                            for number in channels:
                                seconds = send_parts(transport, data, number, folder, "sync" if arguments.sync else "")
                                name = f"{kind}, {number} channel{'s' if number > 1 else ''}"
                                results.setdefault(name, []).append(arguments.megabytes / seconds)
        finally:
            server.stop()
    return results


@contextlib.contextmanager
def _reach(device: Device, round_trip_s: float) -> Iterator[Device]:
    if not round_trip_s:
        yield device
        return
    with run_delay_proxy((device.host, int(device.port or 22)), round_trip_s) as port:
        yield replace(device, port=port)


def _time_scp(device: Device, source: Path, copy: Path, cipher: str) -> float:
    options = ["-q", "-i", device.identity_file, "-o", f"UserKnownHostsFile={device.known_hosts_file}", "-c", cipher]
    began = time.perf_counter()
    command = ["scp", *options, "-P", str(device.port), str(source), f"{device.user}@{device.host}:{copy}"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    copy.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-trip-ms", type=float, default=0.0)
    parser.add_argument("--channels", default="1")
    parser.add_argument("--cipher", default="aes128-gcm@openssh.com")
    parser.add_argument("--openssh", action="store_true", help='measure transport = "openssh", too')
    parser.add_argument("--sync", action="store_true", help="fsync what has arrived")
    results = measure(parser.parse_args())
    for name, values in results.items():
        ratios = [value / scp for value, scp in zip(values, results["scp"], strict=True)]
        print(
            f"{name:22} median {statistics.median(values):6.1f} MB/s  ({', '.join(f'{v:.0f}' for v in values)})"
            f"  {statistics.median(ratios):.2f} x scp ({min(ratios):.2f} ... {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
