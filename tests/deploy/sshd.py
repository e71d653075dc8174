"""A real OpenSSH server on a loopback port, with its own keys and a home folder of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeawq.deploy.inventory import Device


def find_sshd() -> str:
    """Return the path of sshd, or skip the test."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if not found or not shutil.which("ssh-keygen"):
        pytest.skip("needs OpenSSH's sshd and ssh-keygen (Debian: apt-get install openssh-server)")
    return found


def make_key(path: Path, *, kind: str = "ed25519", passphrase: str = "") -> Path:
    """Make a key pair with ssh-keygen and return the private key's path."""
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def install_own_ssh(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an `ssh` in front of the PATH that reads its configuration below `home`.

    The real one finds the user's home in the password file, whatever HOME says.
    """
    program = shutil.which("ssh")
    if not program:
        pytest.skip("needs OpenSSH's ssh (Debian: apt-get install openssh-client)")
    folder.mkdir()
    script = folder / "ssh"
    script.write_text(
        f"""#!/bin/sh
config={home}/.ssh/config
[ -f "$config" ] || config=none
exec {program} -F "$config" -o GlobalKnownHostsFile=none "$@"
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


class SshServer:
    """One sshd. `home` is the HOME that commands on the "device" see, so that nothing touches the real one."""

    def __init__(self, folder: Path, *, host_key_kind: str = "ed25519", extra_config: str = "") -> None:
        self.sshd = find_sshd()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.home = folder / "home"
        self.home.mkdir()
        self.user = getpass.getuser()
        self.identity = make_key(folder / "client_key")
        (folder / "authorized_keys").write_text((folder / "client_key.pub").read_text())
        self.host_key = make_key(folder / "host_key", kind=host_key_kind)
        self.known_hosts = folder / "known_hosts"
        self.port = free_port()
        self.bin = folder / "bin"
        self.bin.mkdir()
        (self.bin / "python3").symlink_to(sys.executable)
        self.extra_config = extra_config
        self.passwords = False  # without PAM and root every password is a wrong one
        self.environment: dict[str, str] = {}  # of sshd itself; commands do not see it
        self.process: subprocess.Popen[bytes] | None = None
        self.start()
        self.trust()

    def start(self) -> None:
        """Start sshd and wait until it listens."""
        config = self.folder / "sshd_config"
        config.write_text(
            f"""
ListenAddress 127.0.0.1
Port {self.port}
HostKey {self.host_key}
PidFile none
UsePAM no
StrictModes no
AuthorizedKeysFile {self.folder}/authorized_keys
PasswordAuthentication {"yes" if self.passwords else "no"}
KbdInteractiveAuthentication no
PermitRootLogin yes
MaxStartups 100
SetEnv HOME={self.home} PATH={self.bin}:/usr/local/bin:/usr/bin:/bin
{self.extra_config}
"""
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        self.log = (self.folder / "sshd.log").open("ab")
        self.process = subprocess.Popen(
            [self.sshd, "-D", "-e", "-f", str(config)], stderr=self.log, env={**os.environ, **self.environment}
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"sshd did not start: {(self.folder / 'sshd.log').read_text()}")
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop listening. Connections that are open stay open."""
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.log.close()
            self.process = None

    def change_host_key(self) -> None:
        """Restart with another host key, as after a new installation, or with someone in between."""
        self.stop()
        number = len(list(self.folder.glob("host_key*")))
        self.host_key = make_key(self.folder / f"host_key{number}")
        self.start()

    def trust(self) -> None:
        """Write the present host key into the test's known_hosts file."""
        kind, key = self.host_key.with_suffix(".pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def device(self, name: str = "board", **changes: object) -> Device:
        """Return the inventory entry for this server."""
        values: dict[str, object] = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": self.user,
            "identity_file": str(self.identity),
            "known_hosts_file": str(self.known_hosts),
            "profile": "host",
        }
        return Device(name=name, **{**values, **changes})  # type: ignore[arg-type]


def free_port() -> int:
    """Return a TCP port on which nobody listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
