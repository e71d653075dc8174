"""Both SSH transports, the built-in one and the system's ssh, against a real OpenSSH server."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko
import pytest

from edgeawq.deploy.connect import ask_nobody, connect
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.ssh import HostKeyQuestion, SshTransport, connect_ssh
from edgeawq.deploy.ssh_config import resolve_endpoint
from edgeawq.errors import AuthenticationError, HostKeyError, TransferError, UnreachableError
from tests.deploy.net_proxy import run_proxy
from tests.deploy.sshd import SshServer, free_port, install_own_ssh, make_key

pytestmark = pytest.mark.server


@pytest.fixture(params=["ssh", "openssh"])
def kind(request: pytest.FixtureRequest, tmp_path: Path, isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The transport that the test is run with."""
    install_own_ssh(tmp_path / "own-ssh", isolated_home, monkeypatch)
    return str(request.param)


def fingerprint(key: Path) -> str:
    shown = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True, check=True).stdout
    return shown.split()[1]


def test_runs_commands(server: SshServer, kind: str) -> None:
    with connect(server.device(transport=kind)) as transport:
        result = transport.run("cat; echo err >&2; exit 3", stdin="häß".encode())
        assert (result.exit_code, result.stdout, result.stderr) == (3, "häß".encode(), b"err")
        assert transport.run("echo $HOME").stdout.decode().strip() == str(server.home)
        assert transport.run("kill -9 $$").exit_code != 0
        assert transport.address == f"{server.user}@127.0.0.1:{server.port}"


def test_prefers_a_fast_cipher_and_sends_small_packets_at_once(server: SshServer) -> None:
    with connect(server.device()) as transport:
        assert isinstance(transport, SshTransport)
        assert transport.cipher == "aes128-gcm@openssh.com"
        stream = transport._transports[0].sock
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_copies_files_both_ways(server: SshServer, tmp_path: Path, kind: str) -> None:
    data = os.urandom(3_000_001)
    path = str(tmp_path / "a file with 'quotes' and ü")
    with connect(server.device(transport=kind)) as transport:
        assert not transport.exists(path)
        transport.put(io.BytesIO(data), path)
        assert transport.exists(path) and Path(path).read_bytes() == data
        copy = io.BytesIO()
        transport.get(path, copy, limit=len(data))
        assert copy.getvalue() == data
        with pytest.raises(TransferError, match="limit"):
            transport.get(path, io.BytesIO(), limit=len(data) - 1)
        with pytest.raises(TransferError, match="nope"):
            transport.get("/nope", io.BytesIO(), limit=10)
        with pytest.raises(TransferError, match="/proc/nope"):
            transport.put(io.BytesIO(data), "/proc/nope")
    assert [entry.name for entry in tmp_path.iterdir() if "part" in entry.name] == []


def test_an_unknown_host_key_is_refused_and_shown(server: SshServer, kind: str) -> None:
    server.known_hosts.write_text("")
    with pytest.raises(HostKeyError) as caught:
        connect(server.device(transport=kind))
    assert fingerprint(server.host_key) in caught.value.what
    assert "edgeawq device add board" in caught.value.remedy
    assert server.known_hosts.read_text() == ""


def test_an_unknown_host_key_can_be_accepted_once(server: SshServer, kind: str) -> None:
    server.known_hosts.write_text("")
    asked: list[HostKeyQuestion] = []

    def accept(question: HostKeyQuestion) -> str:
        asked.append(question)
        return "record"

    connect(server.device(transport=kind), decide=accept).close()  # type: ignore[arg-type]
    connect(server.device(transport=kind)).close()
    assert [question.fingerprint for question in asked] == [fingerprint(server.host_key)]


def test_another_host_key_stops_everything_and_shows_both(server: SshServer, kind: str) -> None:
    before = fingerprint(server.host_key)
    server.change_host_key()
    with pytest.raises(HostKeyError) as caught:
        connect(server.device(transport=kind), decide=lambda question: "record")
    assert before in caught.value.what and fingerprint(server.host_key) in caught.value.what
    assert str(server.known_hosts) in caught.value.what
    command = re.search(r"`(ssh-keygen -R .*?)`", caught.value.remedy)
    assert command is not None
    # What the message says must help.
    subprocess.run(command.group(1), shell=True, check=True, capture_output=True)
    connect(server.device(transport=kind), decide=lambda question: "record").close()
    assert "Accepted publickey" in (server.folder / "sshd.log").read_text()


def test_a_hashed_and_an_aliased_host_key_are_found(server: SshServer, isolated_home: Path, kind: str) -> None:
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(server.known_hosts)], check=True, capture_output=True)
    connect(server.device(transport=kind)).close()
    kind, key = server.host_key.with_suffix(".pub").read_text().split()[:2]
    server.known_hosts.write_text(f"board-alias {kind} {key}\n")
    (isolated_home / ".ssh").mkdir()
    (isolated_home / ".ssh" / "config").write_text("Host 127.0.0.1\n  HostKeyAlias board-alias\n")
    connect(server.device(transport=kind)).close()


def test_asks_the_server_for_the_kind_of_key_on_record(tmp_path: Path, kind: str) -> None:
    server = SshServer(tmp_path / "rsa", host_key_kind="rsa", extra_config="")
    try:
        second = make_key(tmp_path / "ed25519_host_key")
        server.stop()
        server.extra_config = f"HostKey {second}"
        server.start()
        connect(
            server.device(transport=kind)
        ).close()  # only the RSA key is on record; the server would rather show the other
    finally:
        server.stop()


def test_a_revoked_key_is_refused(server: SshServer, kind: str) -> None:
    kind, key = server.host_key.with_suffix(".pub").read_text().split()[:2]
    with server.known_hosts.open("a") as stream:
        stream.write(f"@revoked * {kind} {key}\n")
    with pytest.raises(HostKeyError, match="revoked"):
        connect(server.device(transport=kind))


def test_a_wrong_key_names_what_was_tried(server: SshServer, tmp_path: Path, kind: str) -> None:
    wrong = make_key(tmp_path / "wrong")
    with pytest.raises(AuthenticationError) as caught:
        connect(server.device(transport=kind, identity_file=str(wrong)))
    assert str(wrong) in caught.value.what and f"{server.user}@127.0.0.1:{server.port}" in caught.value.what
    assert f"ssh-copy-id -p {server.port}" in caught.value.remedy


def test_missing_and_broken_key_files_are_named(server: SshServer, tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError, match=r"nope, which does not exist"):
        connect(server.device(identity_file=str(tmp_path / "nope")))
    (tmp_path / "text").write_text("not a key")
    with pytest.raises(AuthenticationError, match="cannot be read"):
        connect(server.device(identity_file=str(tmp_path / "text")))


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_key_kinds_and_passphrases(server: SshServer, tmp_path: Path, kind: str) -> None:
    key = make_key(tmp_path / "locked", kind=kind, passphrase="open sesame")
    with (server.folder / "authorized_keys").open("a") as stream:
        stream.write((tmp_path / "locked.pub").read_text())
    device = server.device(identity_file=str(key))
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return "open sesame"

    connect(device, ask=answer).close()
    assert asked == [f"Passphrase of {key}: "]
    with pytest.raises(AuthenticationError, match="wrong"):
        connect(device, ask=lambda question: "nonsense")
    with pytest.raises(AuthenticationError, match="no terminal") as caught:
        connect(device)
    assert "ssh-add" in caught.value.remedy


def test_uses_the_agent_and_the_default_keys(
    server: SshServer, isolated_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AuthenticationError, match="no key and no password"):
        connect(server.device(identity_file=""))
    (isolated_home / ".ssh").mkdir()
    default = isolated_home / ".ssh" / "id_ed25519"
    default.write_bytes(server.identity.read_bytes())
    connect(server.device(identity_file="")).close()
    default.unlink()
    started = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(SSH_\w+)=([^;]+);", started))
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", found["SSH_AUTH_SOCK"])
        subprocess.run(["ssh-add", "-q", str(server.identity)], check=True)
        connect(server.device(identity_file="")).close()
    finally:
        os.kill(int(found["SSH_AGENT_PID"]), signal.SIGTERM)


def test_a_refused_password_is_asked_for_three_times(server: SshServer) -> None:
    server.stop()
    server.passwords = True
    server.start()
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return "wrong"

    with pytest.raises(AuthenticationError) as caught:
        connect(server.device(identity_file=""), ask=answer)
    assert asked == [f"Password of {server.user}@127.0.0.1:{server.port}: "] * 3
    assert "password; password; password" in caught.value.what and "wrong" not in caught.value.what
    with pytest.raises(AuthenticationError) as unasked:
        connect(server.device(identity_file=""), ask=ask_nobody)
    assert "EDGEAWQ_SSH_PASSWORD" in unasked.value.remedy


def test_nobody_listens(kind: str) -> None:
    with pytest.raises(UnreachableError, match="refuses connections") as caught:
        connect(Device(name="gone", transport=kind, host="127.0.0.1", port=free_port()))
    assert "sshd" in caught.value.remedy and caught.value.exit_code == 4


def test_the_host_name_is_not_known(kind: str) -> None:
    with pytest.raises(UnreachableError, match=r"not known.*|no connection"):
        connect(Device(name="gone", transport=kind, host="no-such-host.invalid"))


@contextmanager
def listener(greeting: bytes | None) -> Iterator[int]:
    """A server that accepts and says `greeting`, then closes; None: it never accepts."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        kept: list[socket.socket] = []

        def serve() -> None:
            with pytest.MonkeyPatch.context():
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
            kept.append(connection)
            if greeting:
                connection.sendall(greeting)
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            server.close()
            for connection in kept:
                connection.close()
            thread.join(2)


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100_000])
def test_something_else_listens(greeting: bytes, kind: str) -> None:
    with listener(greeting) as port, pytest.raises(UnreachableError, match="SSH"):
        connect(Device(name="web", transport=kind, host="127.0.0.1", port=port))


def test_a_server_that_says_nothing_is_given_up(isolated_home: Path, kind: str) -> None:
    (isolated_home / ".ssh").mkdir()
    (isolated_home / ".ssh" / "config").write_text("Host *\n  ConnectTimeout 1\n")
    with listener(b"") as port, pytest.raises(UnreachableError, match="SSH"):
        connect(Device(name="mute", transport=kind, host="127.0.0.1", port=port))


def test_goes_through_jump_hosts_and_checks_each(
    server: SshServer, tmp_path: Path, isolated_home: Path, kind: str
) -> None:
    bastion = SshServer(tmp_path / "bastion")
    try:
        (isolated_home / ".ssh").mkdir()
        config = isolated_home / ".ssh" / "config"
        config.write_text(
            f"Host 127.0.0.1\n  ProxyJump bastion\nHost bastion\n  HostName localhost\n  Port {bastion.port}\n"
            f"  IdentityFile {bastion.identity}\n  UserKnownHostsFile {bastion.known_hosts}\n"
        )
        with pytest.raises(HostKeyError, match=r"bastion|localhost"):
            connect(server.device(transport=kind))
        kind, key = bastion.host_key.with_suffix(".pub").read_text().split()[:2]
        bastion.known_hosts.write_text(f"[localhost]:{bastion.port} {kind} {key}\n")
        with connect(server.device(transport=kind)) as transport:
            assert transport.run("echo through").stdout == b"through\n"
        assert "Accepted publickey" in (bastion.folder / "sshd.log").read_text()
        with pytest.raises(UnreachableError, match="jump host cannot connect"):
            connect(server.device(transport=kind, port=free_port()))
    finally:
        bastion.stop()


def test_a_connection_that_breaks_is_reported(server: SshServer, kind: str) -> None:
    with connect(server.device(transport=kind)) as transport:
        process = transport.start("cat > /dev/null")
        parent = int(transport.run("echo $PPID").stdout)
        os.kill(parent, signal.SIGKILL)  # the sshd process of this connection
        with pytest.raises(TransferError, match=r"lost|ended"):
            for _ in range(2000):
                process.write(b"x" * 65536)
        process.terminate()
        with pytest.raises(TransferError):
            transport.run("true")


def test_many_commands_at_once_share_one_login(server: SshServer, kind: str) -> None:
    data = os.urandom(2_000_000)
    answers: list[bytes] = []
    with connect(server.device(transport=kind)) as transport:

        def work() -> None:
            process = transport.start("exec sha256sum")
            process.write(data)
            process.close_input()
            answers.append(process.read(64))
            process.wait()

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert answers == [hashlib.sha256(data).hexdigest().encode()] * 6
    assert (server.folder / "sshd.log").read_text().count("Accepted publickey") == 1


def test_the_exit_code_of_a_lost_command_is_not_known(server: SshServer, kind: str) -> None:
    with connect(server.device(transport=kind)) as transport:
        assert transport.run("exit 255").exit_code == 255
        parent = int(transport.run("echo $PPID").stdout)
        process = transport.start("exec sleep 60")
        os.kill(parent, signal.SIGKILL)
        assert process.read(1) == b"" and process.wait() == -1
        with pytest.raises(TransferError, match="lost"):
            transport.start("true")


def test_a_silent_command_is_given_up(server: SshServer, kind: str) -> None:
    with connect(server.device(transport=kind)) as transport:
        began = time.monotonic()
        with pytest.raises(TransferError, match=r"too long|silent"):
            transport.run("sleep 60", stall_timeout_s=0.5)
        assert time.monotonic() - began < 30


class PasswordServer(paramiko.ServerInterface):
    """OpenSSH needs PAM or root to check a password; this stands in for it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def get_allowed_auths(self, username: str) -> str:
        return self.kind

    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_SUCCESSFUL if password == "pass wörd" else paramiko.AUTH_FAILED

    def check_auth_interactive(self, username: str, submethods: str) -> paramiko.InteractiveQuery:
        return paramiko.InteractiveQuery("", "", ("Password: ", False))

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        return paramiko.AUTH_SUCCESSFUL if responses == ["pass wörd"] else paramiko.AUTH_FAILED


@pytest.mark.parametrize("kind", ["password", "keyboard-interactive"])
@pytest.mark.parametrize("source", ["asked", "environment"])
def test_logs_in_with_a_password(kind: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host_key = paramiko.RSAKey.generate(2048)
    ready = threading.Event()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)

        def serve() -> None:
            stream, _ = listening.accept()
            transport = paramiko.Transport(stream)
            transport.add_server_key(host_key)
            transport.start_server(server=PasswordServer(kind))
            ready.wait(20)
            transport.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        answers = ["first try is wrong", "pass wörd"]
        if source == "environment":
            monkeypatch.setenv("EDGEAWQ_SSH_PASSWORD", "pass wörd")
            answers = []
        device = Device(
            name="d",
            host="127.0.0.1",
            port=listening.getsockname()[1],
            known_hosts_file=str(tmp_path / "known"),
        )
        endpoint = resolve_endpoint(device)
        transport = connect_ssh(endpoint, ask=lambda question: answers.pop(0), decide=lambda question: "record")
        transport.close()
        ready.set()
        thread.join(10)
    assert answers == []


@pytest.mark.parametrize("busy", ["reading", "writing", "waiting"])
def test_a_peer_that_falls_silent_is_noticed(server: SshServer, tmp_path: Path, kind: str, busy: str) -> None:
    known, key = tmp_path / "known", server.host_key.with_suffix(".pub").read_text()
    with run_proxy(server.port) as proxy:
        known.write_text(f"[127.0.0.1]:{proxy.port} {key}")
        device = server.device(transport=kind, port=proxy.port, known_hosts_file=str(known))
        with connect(device, dead_after_s=2.0) as transport:
            time.sleep(3.0)  # quiet, but alive
            assert transport.run("echo there").stdout == b"there\n"
            process = transport.start("exec cat > /dev/null" if busy == "writing" else "exec sleep 100")
            proxy.silent.set()
            began = time.monotonic()
            if busy == "writing":
                with pytest.raises(TransferError, match=r"lost|given up|ended"):
                    while True:
                        process.write(bytes(100_000))
            elif busy == "reading":
                assert process.read(1) == b"" and process.wait() == -1
            else:
                assert process.wait() == -1
            # Far less than the stall timeout, with room for a busy machine.
            assert time.monotonic() - began < 40
            process.terminate()
            with pytest.raises(TransferError):
                transport.run("true")
