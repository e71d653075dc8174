"""What each cipher costs the device: CPU time of its sshd per gigabyte received, with and without AES instructions.

Run: python -m benchmarks.ssh_ciphers [--megabytes 200] [--rounds 3]

A Raspberry Pi 4 has no instructions for AES and SHA-2. That is imitated here by hiding them from the OpenSSL of the
sshd (OPENSSL_ia32cap: AES, PCLMULQDQ; VAES, VPCLMULQDQ, SHA); the host keeps its own. On such a device the CPU time of
sshd is the limit, and it can be measured on a machine that is busy with other things, which a rate cannot.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from edgeawq.deploy.connect import connect
from tests.deploy.sshd import SshServer

NO_AES = "~0x200000200000000:~0x60020000000"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Suite:
    """A cipher, its MAC where it needs one, and the transport that has it."""

    transport: str
    cipher: str
    mac: str = ""

    @property
    def name(self) -> str:
        """For the table."""
        return " + ".join(part.removesuffix("@openssh.com") for part in (self.cipher, self.mac) if part)


SUITES = (
    Suite("ssh", "aes128-gcm@openssh.com"),
    Suite("ssh", "aes128-ctr", "hmac-sha2-256-etm@openssh.com"),
    Suite("ssh", "aes128-ctr", "hmac-sha2-512-etm@openssh.com"),
    Suite("ssh", "aes128-ctr", "hmac-sha2-256"),
    Suite("openssh", "aes128-gcm@openssh.com"),
    Suite("openssh", "chacha20-poly1305@openssh.com"),
    Suite("openssh", "aes128-ctr", "umac-64-etm@openssh.com"),
    Suite("openssh", "aes128-ctr", "umac-128-etm@openssh.com"),
)


def measure(server: SshServer, suite: Suite, megabytes: int) -> tuple[float, float]:
    """Return (seconds of sshd's CPU per GB, MB/s)."""
    block = os.urandom(1 << 20)
    with connect(server.device(transport=suite.transport, cipher=suite.cipher)) as transport:
        sshd = int(transport.run("echo $PPID").stdout)
        process = transport.start("exec cat > /dev/null")
        before, began = _cpu_s(sshd), time.perf_counter()
        for _ in range(megabytes):
            process.write(block)
        # The last megabytes may still be under way; with some hundred that does not matter.
        used, seconds = _cpu_s(sshd) - before, time.perf_counter() - began
        process.terminate()
    return used / (megabytes * 1.048576e-3), megabytes * 1.048576 / seconds


def _cpu_s(process: int) -> float:
    numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) * TICK_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    results: dict[tuple[str, Suite], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="edgeawq-bench-") as scratch:
        folder = Path(scratch)
        os.environ["HOME"] = str(folder)  # no key, agent or known_hosts of the user's is used
        server = SshServer(folder / "sshd")
        try:
            for _ in range(arguments.rounds):
                for kind, mask in (("AES", ""), ("no AES", NO_AES)):
                    for suite in SUITES:
                        server.stop()
                        server.environment = {"OPENSSL_ia32cap": mask} if mask else {}
                        server.extra_config = f"MACs {suite.mac}" if suite.mac else ""
                        server.start()
                        results.setdefault((kind, suite), []).append(measure(server, suite, arguments.megabytes))
        finally:
            server.stop()
    print(f"{'device':7} {'transport':9} {'suite':40} {'sshd CPU, s per GB':>24} {'MB/s':>8}")
    for (kind, suite), values in results.items():
        cpu = [value[0] for value in values]
        spread = f"{statistics.median(cpu):.2f} ({min(cpu):.2f} ... {max(cpu):.2f})"
        rate = statistics.median(value[1] for value in values)
        print(f"{kind:7} {suite.transport:9} {suite.name:40} {spread:>24} {rate:8.0f}")


if __name__ == "__main__":
    main()
