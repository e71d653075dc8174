"""Logging in with the system's ssh: how it is called, its host key question, and its control socket."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeawq.deploy.inventory import Device
from edgeawq.deploy.ssh_config import Endpoint, parse_jump
from edgeawq.deploy.ssh_errors import explain_unknown_key
from edgeawq.deploy.ssh_known_hosts import append_known_host, format_fingerprint, name_host, parse_known_hosts
from edgeawq.deploy.transport import wrap_command
from edgeawq.errors import UsageError

if TYPE_CHECKING:
    from edgeawq.deploy.ssh import DecideHostKey

MAX_SOCKET_PATH = 90  # of 108, as ssh appends a random suffix while it makes the socket
READY = b"@@edgeawq-logged-in@@"
MAX_NOISE_BYTES = 64 << 10
LOGIN_TIMEOUT_S = 600.0  # somebody may have to find a password

# What the user's configuration may say about a login by hand, and would be in the way here.
NO_EXTRAS = {"RemoteCommand": "none", "PermitLocalCommand": "no", "ForwardX11": "no", "ClearAllForwardings": "yes"}


@dataclass(frozen=True)
class SystemSsh:
    """How ssh is called for one device: the program, and the options that the inventory adds to its configuration."""

    program: str
    target: str
    options: tuple[str, ...]
    endpoint: Endpoint  # what ssh itself makes of it (`ssh -G`), for messages


def describe_ssh(device: Device) -> SystemSsh:
    """Return how to call ssh for `device`, and what it makes of its configuration. UsageError if it refuses that."""
    program = shutil.which("ssh")
    if not program:
        raise UsageError(
            f'{device.name}: transport = "openssh" needs the program `ssh`, which is not there',
            remedy="install OpenSSH's client (Debian: openssh-client), or remove that line from the inventory",
        )
    options: list[str] = []
    if device.user:
        options += ["-l", device.user]
    if device.port:
        options += ["-p", str(device.port)]
    if device.identity_file:
        options += ["-i", str(Path(device.identity_file).expanduser())]
    if device.known_hosts_file:
        options += ["-o", f'UserKnownHostsFile="{Path(device.known_hosts_file).expanduser()}"']
    if device.cipher:
        options += ["-o", f"Ciphers={device.cipher}"]
    shown = subprocess.run(
        [program, "-G", *options, "--", device.host], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if shown.returncode:
        raise UsageError(
            f"{device.name}: ssh does not accept its configuration: {shown.stderr.strip()[-500:]}",
            remedy=f"try `ssh -G {device.host}`",
        )
    values: dict[str, str] = {}
    identities: list[Path] = []
    for line in shown.stdout.splitlines():
        key, _, value = line.partition(" ")
        values.setdefault(key, value)
        if key == "identityfile":
            identities.append(Path(value).expanduser())
    timeout = values.get("connecttimeout", "none")
    endpoint = Endpoint(
        label=device.name,
        host=values.get("hostname", device.host),
        port=int(values.get("port", "22")),
        user=values.get("user", device.user),
        identity_files=tuple(path for path in identities if path.exists()),
        known_hosts_files=tuple(Path(name).expanduser() for name in values.get("userknownhostsfile", "").split()),
        host_key_alias=values.get("hostkeyalias", ""),
        jumps=_read_jumps(values.get("proxyjump", "none")),
        connect_timeout_s=float(timeout) if timeout.isdigit() and int(timeout) else 15.0,
    )
    return SystemSsh(program, device.host, tuple(options), endpoint)


class LoginFailedError(Exception):
    """ssh has ended before it was logged in; `log` is what it wrote."""

    def __init__(self, log: str) -> None:
        super().__init__(log)
        self.log = log


def log_in(ssh: SystemSsh, folder: Path, interactive: bool, dead_after_s: float) -> subprocess.Popen[bytes]:
    """Start ssh with a control socket, and return it when it is logged in; LoginFailedError when it has ended."""
    (folder / "log").unlink(missing_ok=True)
    interval_s = max(1, int(dead_after_s / 4))
    options = ["-M", "-S", str(folder / "s"), "-E", str(folder / "log"), "-T"]
    for name, value in {
        "ControlPersist": "no",
        "StrictHostKeyChecking": "yes",
        "BatchMode": "no" if interactive else "yes",
        "ServerAliveInterval": interval_s,
        "ServerAliveCountMax": max(1, int(dead_after_s) // interval_s),
        "ConnectTimeout": int(ssh.endpoint.connect_timeout_s),
        "LogLevel": "INFO",
        "EscapeChar": "none",
        **NO_EXTRAS,
    }.items():
        options += ["-o", f"{name}={value}"]
    wait = wrap_command(f"echo {READY.decode()}; exec cat > /dev/null")
    command = [ssh.program, *ssh.options, *options, "--", ssh.target, wait]
    if interactive:
        # ssh needs this terminal to ask at, so it would also get the Ctrl-C that is meant for us.
        command = ["/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]
    with (folder / "log").open("ab") as log:
        login = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # ssh's own errors go to the log (-E). A FIDO key's "confirm user presence" must be seen, and what a
            # jump host's ssh or a ProxyCommand says is wanted in the message.
            stderr=None if interactive else log,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=not interactive,
        )
    try:
        if _wait_until_ready(login, LOGIN_TIMEOUT_S if interactive else ssh.endpoint.connect_timeout_s + 60):
            return login
    except BaseException:
        end_login(login)
        raise
    end_login(login)
    raise LoginFailedError(read_log(folder) or f"ssh ended with code {login.returncode} and said nothing")


def _wait_until_ready(login: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Read up to the sign that the command there runs; a login script may print something before it."""
    assert login.stdout
    noise = b""
    deadline = time.monotonic() + timeout_s
    while READY not in noise and len(noise) <= MAX_NOISE_BYTES:
        if not select.select([login.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        block = os.read(login.stdout.fileno(), 4096)
        if not block:
            return False
        noise += block
    return READY in noise


def end_login(login: subprocess.Popen[bytes]) -> None:
    """End the ssh that holds the login."""
    assert login.stdin and login.stdout
    with contextlib.suppress(OSError):
        login.stdin.close()
    try:
        login.wait(2.0)
    except subprocess.TimeoutExpired:
        login.kill()
        login.wait()
    login.stdout.close()


def _read_jumps(text: str) -> tuple[Endpoint, ...]:
    """Return the jump hosts as far as messages need them."""
    hops = [parse_jump(hop) for hop in text.split(",")] if text != "none" else []
    return tuple(Endpoint(host, host, port or 22, user) for host, user, port in hops)


def settle_unknown_key(ssh: SystemSsh, folder: Path, decide: DecideHostKey | None) -> bool:
    """Fetch the host key without logging in, put it to the user, and record it the way ssh writes it.

    False when there was no key to fetch: the unknown one is that of a jump host, which is ssh's own affair.
    """
    from edgeawq.deploy.ssh import HostKeyQuestion, refuse_unknown_key

    shown = folder / "known_hosts"
    options = ["-o", f'UserKnownHostsFile="{shown}"', "-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes"]
    options += ["-o", "PreferredAuthentications=none", "-o", "ControlPath=none", "-o", "UpdateHostKeys=no"]
    options += ["-o", f"ConnectTimeout={int(ssh.endpoint.connect_timeout_s)}"]
    # The first value counts, so these come before the inventory's own.
    command = [ssh.program, *options, *ssh.options, "-T", "--", ssh.target, "exit"]
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LOGIN_TIMEOUT_S)
    endpoint = ssh.endpoint
    lines = shown.read_text(encoding="utf-8", errors="replace").splitlines() if shown.exists() else []
    for line in lines:
        for entry in parse_known_hosts(line, str(shown)):
            question = HostKeyQuestion(endpoint, entry.key_type, format_fingerprint(entry.key))
            if (decide or refuse_unknown_key)(question) != "record":
                name = endpoint.host_key_alias or name_host(endpoint.host, endpoint.port)
                raise explain_unknown_key(endpoint, name, entry.key_type, question.fingerprint)
            append_known_host(endpoint.known_hosts_files[0], line)
    return bool(lines)


def make_socket_folder() -> Path:
    """Make a folder for the control socket that nobody else can enter; its path must be short."""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if base and len(base) + len("/edgeawq-ssh-12345678/s") <= MAX_SOCKET_PATH and os.access(base, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="edgeawq-ssh-", dir=base))  # made with mode 700
    raise UsageError("there is no folder for ssh's control socket", remedy="set TMPDIR to a short path")


def read_log(folder: Path) -> str:
    """Return the end of what ssh wrote to its log."""
    try:
        return (folder / "log").read_text(encoding="utf-8", errors="replace").strip()[-8000:]
    except OSError:
        return ""
