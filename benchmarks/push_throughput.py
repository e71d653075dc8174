"""Upload rate of a push over loopback SSH, next to scp of the very same files, and `ssh cat`, with the same cipher.

Two releases: one large file and ten small ones, and the same with 1500 small files, as a real site folder has.

Run: python -m benchmarks.push_throughput [--megabytes 500] [--rounds 3]

Client and server share this machine's cores: the ratios say something, the rates are not those of a real network.
scp's time includes its login, which a push has made before; what a login alone takes is measured, too, and taken off in
the second ratio.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from edgeawq.deploy.connect import connect
from edgeawq.deploy.push import PushOptions, push
from edgeawq.deploy.upload import UploadOptions
from tests.deploy.fakes import make_bundle, make_site
from tests.deploy.sshd import SshServer

CIPHER = "aes128-gcm@openssh.com"
PUSHES = ((10, 1), (10, 2), (1500, 2))  # small files beside the large one, channels


def measure(megabytes: int, rounds: int) -> dict[str, list[float]]:
    """Return name → MB/s of each round (seconds for pushes as a whole, and for a login)."""
    results: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        results.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory(prefix="edgeawq-bench-") as scratch:
        folder = Path(scratch)
        # No key, agent or known_hosts of the user's is used.
        os.environ["HOME"] = str(folder)
        server = SshServer(folder / "sshd", extra_config="Subsystem sftp internal-sftp")
        sites = {count: make_site(folder / f"site{count}", n_files=count) for count in (10, 1500)}
        ssh_options = ["-q", "-i", str(server.identity), "-o", f"UserKnownHostsFile={server.known_hosts}", "-c", CIPHER]
        try:
            for number in range(rounds):
                bundle = make_bundle(folder / f"bundle{number}", weights_bytes=megabytes * 1_000_000)
                for small_files, channels in PUSHES:
                    site = sites[small_files]
                    root = folder / f"root{number}-{small_files}-{channels}"
                    device = server.device(root=str(root))
                    # Not compressed, whatever the line: the ratio to scp is wanted.
                    options = PushOptions(upload=UploadOptions(channels=channels, compression="never"))
                    with connect(device) as transport:
                        first = push(transport, device, bundle, options, site=lambda *_, chosen=site: chosen)
                        second = push(transport, device, bundle, options, site=lambda *_, chosen=site: chosen)
                    what = f"{small_files} small files"
                    note(f"push, {what}, channels: {channels}, MB/s", first.bytes_sent / 1e6 / first.upload_s)
                    note(f"push again with nothing new, {what}, s", second.seconds)
                    shutil.rmtree(root)
                login = ["ssh", *ssh_options, "-p", str(server.port), "127.0.0.1", "true"]
                login_s = min(_time(lambda command=login: _run(command, None)) for _ in range(3))
                note("ssh login, s", login_s)
                for small_files, site in sites.items():
                    tree = folder / "tree"
                    scp = ["scp", *ssh_options, "-r", "-P", str(server.port), str(bundle), str(site)]
                    tree.mkdir()
                    seconds = _time(lambda command=[*scp, f"127.0.0.1:{tree}"]: _run(command, None))
                    note(f"scp -r, {small_files} small files, MB/s", megabytes / seconds)
                    note(f"scp -r without its login, {small_files} small files, MB/s", megabytes / (seconds - login_s))
                    shutil.rmtree(tree)
                weights, copy = bundle / "weights.bin", folder / "copy"
                cat = ["ssh", *ssh_options, "-p", str(server.port), "127.0.0.1", f"cat > {copy} && sync {copy}"]
                note(
                    "ssh cat and sync, MB/s",
                    megabytes / _time(lambda command=cat, source=weights: _run(command, source)),
                )
                copy.unlink()
        finally:
            server.stop()
    return results


def _run(command: list[str], source: Path | None) -> None:
    with Path(source or os.devnull).open("rb") as stream:
        subprocess.run(command, stdin=stream, check=True)


def _time(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    results = measure(arguments.megabytes, arguments.rounds)
    for name, values in results.items():
        digits = 1 if name.endswith("MB/s") else 2
        spread = ", ".join(f"{value:.{digits}f}" for value in values)
        print(f"{name:50} median {statistics.median(values):7.{digits}f}   ({spread})")
    for small_files, channels in PUSHES:
        pushed = results[f"push, {small_files} small files, channels: {channels}, MB/s"]
        for kind in ("scp -r", "scp -r without its login"):
            copied = results[f"{kind}, {small_files} small files, MB/s"]
            ratios = [one / other for one, other in zip(pushed, copied, strict=True)]
            print(
                f"push, {small_files} small files, channels: {channels}, is {kind} times"
                f" {statistics.median(pushed) / statistics.median(copied):.2f} (medians),"
                f" {statistics.median(ratios):.2f} (rounds: {min(ratios):.2f} … {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
