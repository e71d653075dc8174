"""What only the transport "openssh" has: the login of its own, the user's configuration, ssh's own messages."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from edgeawq.deploy import ssh_system
from edgeawq.deploy.connect import connect
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.ssh_config import Endpoint
from edgeawq.deploy.ssh_system import OpenSshTransport
from edgeawq.deploy.ssh_system_errors import explain_system_ssh
from edgeawq.errors import AuthenticationError, HostKeyError, UnreachableError, UsageError
from tests.deploy.sshd import SshServer, install_own_ssh


@pytest.fixture(autouse=True)
def own_ssh(tmp_path: Path, isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_own_ssh(tmp_path / "own-ssh", isolated_home, monkeypatch)
    (isolated_home / ".ssh").mkdir()


@pytest.mark.server
def test_the_socket_lies_in_a_private_folder_that_goes_away(server: SshServer) -> None:
    with connect(server.device(transport="openssh")) as transport:
        assert isinstance(transport, OpenSshTransport)
        folder = transport._folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and (folder / "s").is_socket()
        login = transport._login
    assert not folder.exists() and login.poll() is not None


@pytest.mark.server
def test_the_login_ends_with_the_process_that_made_it(server: SshServer) -> None:
    device = json.dumps(asdict(server.device(transport="openssh")))
    script = (
        "import json, sys, time\n"
        "from edgeawq.deploy.connect import connect\n"
        "from edgeawq.deploy.inventory import Device\n"
        "transport = connect(Device(**json.loads(sys.argv[1])))\n"
        "process = transport.start('exec cat')\n"
        "print(transport._login.pid, transport.run('echo $PPID').stdout.decode().strip(), flush=True)\n"
        "time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, device], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        there = int(child.stdout.readline().split()[1])
        child.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{there}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{there}").exists(), "sshd still has the connection"


@pytest.mark.server
def test_a_configuration_for_logins_by_hand_is_not_in_the_way(
    server: SshServer, isolated_home: Path, tmp_path: Path
) -> None:
    (isolated_home / ".ssh" / "config").write_text(
        f"Host *\n  ControlMaster auto\n  ControlPath {tmp_path}/their-socket\n  RemoteCommand echo wrong\n"
        "  RequestTTY force\n  LogLevel DEBUG\n  PermitLocalCommand yes\n  LocalCommand echo wrong\n"
        "  StrictHostKeyChecking no\n"
    )
    device = server.device(transport="openssh")
    with connect(device) as transport:
        result = transport.run("cat; echo err >&2", stdin=b"right\r\n")
        assert (result.stdout, result.stderr) == (b"right\r\n", b"err")
    assert not (tmp_path / "their-socket").exists()
    server.known_hosts.write_text("")
    with pytest.raises(HostKeyError):  # strict, whatever the configuration says
        connect(device)


@pytest.mark.server
def test_noise_of_a_login_script_is_passed_over(server: SshServer) -> None:
    server.stop()
    server.extra_config = 'ForceCommand echo welcome; eval "$SSH_ORIGINAL_COMMAND"'
    server.start()
    with connect(server.device(transport="openssh")) as transport:
        assert transport.run("echo there").stdout == b"welcome\nthere\n"


def test_says_when_there_is_no_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="ssh") as caught:
        connect(Device(name="board", host="10.0.0.4", transport="openssh"))
    assert "openssh-client" in caught.value.remedy


def test_a_configuration_that_ssh_refuses_is_the_users_mistake(isolated_home: Path) -> None:
    (isolated_home / ".ssh" / "config").write_text("Host *\n  Prot 22\n")
    with pytest.raises(UsageError, match="prot"):
        connect(Device(name="board", host="10.0.0.4", transport="openssh"))


@pytest.mark.parametrize(
    ("log", "kind", "said"),
    [
        ("ssh: Could not resolve hostname pi4: Name or service not known", UnreachableError, "not known"),
        ("ssh: connect to host pi4 port 22: Connection refused", UnreachableError, "refuses connections"),
        ("ssh: connect to host pi4 port 22: Connection timed out", UnreachableError, "did not answer"),
        ("ssh: connect to host pi4 port 22: No route to host", UnreachableError, "No route to host"),
        ("Connection timed out during banner exchange", UnreachableError, "SSH server"),
        ("kex_exchange_identification: read: Connection reset by peer", UnreachableError, "SSH server"),
        ("Unable to negotiate with 10.0.0.4 port 22: no matching cipher found.", UnreachableError, "cipher"),
        ("channel 0: open failed: connect failed: Connection refused", UnreachableError, "jump host"),
        ("pi@pi4: Permission denied (publickey,password).", AuthenticationError, "pi@pi4:22"),
        ("Received disconnect: 2: Too many authentication failures", AuthenticationError, "pi@pi4:22"),
        ("@ WARNING: REVOKED HOST KEY DETECTED! @\nHost key verification failed.", HostKeyError, "revoked"),
        ("No ED25519 host key is known for pi4\nHost key verification failed.", HostKeyError, "not known"),
        ("something new", UnreachableError, "something new"),
    ],
)
def test_understands_what_ssh_says(log: str, kind: type[Exception], said: str) -> None:
    error = explain_system_ssh(log, Endpoint("board", "pi4", 22, "pi"), interactive=False)
    assert type(error) is kind and said in error.what and error.remedy


def test_a_password_can_only_be_given_at_a_terminal() -> None:
    endpoint = Endpoint("board", "pi4", 22, "pi")
    log = "pi@pi4: Permission denied (publickey,password)."
    assert "terminal" in explain_system_ssh(log, endpoint, interactive=False).remedy
    assert "EDGEAWQ_SSH_PASSWORD" not in explain_system_ssh(log, endpoint, interactive=False).remedy


def test_a_login_that_ends_a_moment_after_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """ssh tells the command's process of a lost connection before it goes itself."""
    transport = OpenSshTransport.__new__(OpenSshTransport)
    answers = iter([True, True, False])
    monkeypatch.setattr(transport, "is_alive", lambda: next(answers))
    assert transport.has_ended()
    monkeypatch.setattr(ssh_system, "LOGIN_ENDS_WITHIN_S", 0.05)
    monkeypatch.setattr(transport, "is_alive", lambda: True)
    assert not transport.has_ended(), "a command may end with 255 by itself"
