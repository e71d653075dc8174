"""ProxyCommand and certificates, for both SSH transports, against a real OpenSSH server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeawq.deploy.connect import connect
from edgeawq.errors import AuthenticationError, HostKeyError, UnreachableError, UsageError
from tests.deploy.sshd import SshServer, install_own_ssh, make_key

pytestmark = pytest.mark.server

# Connects standard input and output to a port: nc is not on every machine.
RELAY = """
import os, socket, sys, threading
stream = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def feed():
    while block := os.read(0, 65536):
        stream.sendall(block)
    stream.shutdown(socket.SHUT_WR)
threading.Thread(target=feed, daemon=True).start()
while block := stream.recv(65536):
    os.write(1, block)
"""


@pytest.fixture(params=["ssh", "openssh"])
def kind(request: pytest.FixtureRequest, tmp_path: Path, isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The transport that the test is run with."""
    install_own_ssh(tmp_path / "own-ssh", isolated_home, monkeypatch)
    (isolated_home / ".ssh").mkdir()
    return str(request.param)


@pytest.fixture
def relay(tmp_path: Path) -> str:
    """A command for ProxyCommand: HOST PORT [USER]; it notes what it was called with in tmp_path / "note"."""
    (tmp_path / "relay.py").write_text(RELAY)
    script = tmp_path / "relay"
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/note\nexec {sys.executable} {tmp_path}/relay.py "$@"\n')
    script.chmod(0o755)
    return str(script)


def configure(home: Path, text: str) -> None:
    (home / ".ssh" / "config").write_text(text)


def test_a_proxy_command_with_its_marks(
    server: SshServer, kind: str, relay: str, isolated_home: Path, tmp_path: Path
) -> None:
    configure(isolated_home, f"Host board\n  HostName 127.0.0.1\n  ProxyCommand {relay} %h %p %r\n")
    with connect(server.device(transport=kind, host="board")) as transport:
        assert transport.run("echo through").stdout == b"through\n"
    assert (tmp_path / "note").read_text().split() == ["127.0.0.1", str(server.port), server.user]


def test_a_proxy_command_that_fails_says_why(server: SshServer, kind: str, isolated_home: Path) -> None:
    configure(isolated_home, "Host *\n  ProxyCommand sh -c 'echo the tunnel is down >&2; exit 3'\n")
    with pytest.raises(UnreachableError) as caught:
        connect(server.device(transport=kind))
    assert "the tunnel is down" in caught.value.what


def test_the_host_key_counts_behind_a_proxy_command(
    server: SshServer, kind: str, relay: str, isolated_home: Path
) -> None:
    configure(isolated_home, f"Host *\n  ProxyCommand {relay} %h %p\n")
    server.change_host_key()
    with pytest.raises(HostKeyError, match="another host key"):
        connect(server.device(transport=kind))


def test_none_means_a_straight_connection(server: SshServer, kind: str, isolated_home: Path) -> None:
    configure(isolated_home, "Host 127.0.0.1\n  ProxyCommand none\nHost *\n  ProxyCommand false\n")
    with connect(server.device(transport=kind)) as transport:
        assert transport.run("echo there").stdout == b"there\n"


@pytest.fixture
def authority(server: SshServer, tmp_path: Path) -> Iterator[Path]:
    """A certificate authority; the server lets in the users it has signed, and nobody else."""
    key = make_key(tmp_path / "user_ca")
    server.stop()
    (server.folder / "authorized_keys").write_text("")
    server.extra_config = f"TrustedUserCAKeys {key}.pub"
    server.start()
    yield key


def sign(authority: Path, key: Path, *options: str) -> None:
    command = ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", *options, f"{key}.pub"]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize("key_kind", ["ed25519", "rsa", "ecdsa"])
def test_a_user_certificate_beside_its_key(
    server: SshServer, kind: str, authority: Path, tmp_path: Path, key_kind: str
) -> None:
    key = make_key(tmp_path / "mine", kind=key_kind)
    device = server.device(transport=kind, identity_file=str(key))
    with pytest.raises(AuthenticationError):
        connect(device)
    sign(authority, key, "-n", server.user)
    connect(device).close()
    sign(authority, key, "-n", "somebody-else")
    with pytest.raises(AuthenticationError):
        connect(device)


def test_a_certificate_named_in_the_configuration(
    server: SshServer, kind: str, authority: Path, tmp_path: Path, isolated_home: Path
) -> None:
    key = make_key(tmp_path / "mine")
    sign(authority, key, "-n", server.user)
    elsewhere = tmp_path / "elsewhere.pub"
    (tmp_path / "mine-cert.pub").rename(elsewhere)
    configure(isolated_home, f"Host *\n  CertificateFile {elsewhere}\n")
    connect(server.device(transport=kind, identity_file=str(key))).close()
    other = make_key(tmp_path / "other")  # the certificate is about another key
    with pytest.raises(AuthenticationError):
        connect(server.device(transport=kind, identity_file=str(other)))


def test_a_key_is_tried_without_its_certificate_when_that_has_run_out(
    server: SshServer, kind: str, authority: Path
) -> None:
    (server.folder / "authorized_keys").write_text((server.folder / "client_key.pub").read_text())
    sign(authority, server.identity, "-n", server.user, "-V", "-2w:-1w")
    connect(server.device(transport=kind)).close()


def test_a_host_certificate(server: SshServer, kind: str, tmp_path: Path) -> None:
    ca = make_key(tmp_path / "host_ca")
    sign(ca, server.host_key, "-h", "-n", "127.0.0.1")
    server.stop()
    server.extra_config = f"HostCertificate {server.host_key}-cert.pub"
    server.start()
    public = " ".join(Path(f"{ca}.pub").read_text().split()[:2])
    server.known_hosts.write_text(f"@cert-authority [127.0.0.1]:* {public}\n")
    device = server.device(transport=kind)
    if kind == "openssh":
        with connect(device) as transport:
            assert transport.run("echo there").stdout == b"there\n"
        other = make_key(tmp_path / "other_ca")
        server.known_hosts.write_text(f"@cert-authority * {' '.join(Path(f'{other}.pub').read_text().split()[:2])}\n")
        with pytest.raises(HostKeyError):
            connect(device)
        return
    with pytest.raises(HostKeyError, match="certificate authority") as caught:
        connect(device, decide=lambda question: "record")
    assert 'transport = "openssh"' in caught.value.remedy
    with server.known_hosts.open("a") as stream:  # a plain key on record counts, too
        stream.write(f"[127.0.0.1]:{server.port} {' '.join(Path(f'{server.host_key}.pub').read_text().split()[:2])}\n")
    connect(device).close()


def test_the_ciphers_of_the_inventory(server: SshServer, kind: str) -> None:
    name = "chacha20-poly1305@openssh.com" if kind == "openssh" else "aes256-ctr"
    server.stop()
    server.extra_config = f"Ciphers {name}"
    server.start()
    connect(server.device(transport=kind, cipher=f"{name},aes128-gcm@openssh.com")).close()
    with pytest.raises(UnreachableError, match=r"cipher"):
        connect(server.device(transport=kind, cipher="aes192-ctr"))
    with pytest.raises(UsageError, match="nonsense"):
        connect(server.device(transport=kind, cipher="nonsense"))
