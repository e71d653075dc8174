"""`transport = "openssh"`: the system's own ssh program, with the user's own configuration of it.

Whatever that ssh can do works: ProxyCommand, host and user certificates, FIDO keys, GSSAPI, Match blocks. One login
serves any number of commands at the same time (ControlMaster); its socket lies in a folder that only this user can
enter. The login holds a command there that waits for the end of its input: when this process dies, however it does,
its end of that pipe closes, and the login ends with the last command that it serves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edgeawq.deploy.inventory import Device
from edgeawq.deploy.pipe_process import PipeProcess
from edgeawq.deploy.ssh_system_errors import explain_system_ssh, is_unknown_host_key
from edgeawq.deploy.ssh_system_login import (
    NO_EXTRAS,
    LoginFailedError,
    SystemSsh,
    describe_ssh,
    end_login,
    log_in,
    make_socket_folder,
    read_log,
    settle_unknown_key,
)
from edgeawq.deploy.transport import DEAD_PEER_S, STALL_TIMEOUT_S, RemoteProcess, TransportBase, wrap_command
from edgeawq.errors import DeployError, TransferError

if TYPE_CHECKING:
    from edgeawq.deploy.ssh import DecideHostKey

CONNECTION_ENDED = 255  # ssh's own exit code; a command there can end with it, too
LOGIN_ENDS_WITHIN_S = 1.0  # a command hears of a lost connection a moment before the login that it goes through ends


def connect_openssh(
    device: Device, *, interactive: bool = False, decide: DecideHostKey | None = None, dead_after_s: float = DEAD_PEER_S
) -> OpenSshTransport:
    """Log in to `device` with the system's ssh.

    interactive: ssh may ask at the terminal (passphrase, password, PIN); otherwise it must not ask anything.
    decide: called for a host key that is not on record; refused without.
    dead_after_s: whole seconds after which a silent peer is given up.
    UnreachableError, HostKeyError or AuthenticationError say what failed; UsageError when there is no ssh here.
    """
    ssh = describe_ssh(device)
    folder = make_socket_folder()
    try:
        try:
            return OpenSshTransport(ssh, folder, log_in(ssh, folder, interactive, dead_after_s))
        except LoginFailedError as error:
            if not (is_unknown_host_key(error.log) and settle_unknown_key(ssh, folder, decide)):
                raise explain_system_ssh(error.log, ssh.endpoint, interactive=interactive) from error
        try:
            return OpenSshTransport(ssh, folder, log_in(ssh, folder, interactive, dead_after_s))
        except LoginFailedError as error:
            raise explain_system_ssh(error.log, ssh.endpoint, interactive=interactive) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


class OpenSshTransport(TransportBase):
    """A login of the system's ssh; commands share it through the control socket in `folder`."""

    def __init__(self, ssh: SystemSsh, folder: Path, login: subprocess.Popen[bytes]) -> None:
        self._ssh = ssh
        self._folder = folder
        self._login = login

    @property
    def address(self) -> str:
        """user@host:port"""
        return self._ssh.endpoint.address

    def start(self, command: str, *, stall_timeout_s: float = STALL_TIMEOUT_S) -> RemoteProcess:
        """Start a /bin/sh command with pipes on its standard input and output."""
        self._check_alive()
        return OpenSshProcess(self, self._call("-T", command), stall_timeout_s)

    def run_terminal(self, command: str) -> int:
        """Run a /bin/sh command on this process's terminal, or through pipes where there is none."""
        self._check_alive()
        kind = "-tt" if sys.stdin.isatty() and sys.stdout.isatty() else "-T"
        with subprocess.Popen(self._call(kind, command)) as child:
            while True:
                try:
                    code = child.wait()
                    break
                except KeyboardInterrupt:
                    continue  # ssh has had it, too
        if code == CONNECTION_ENDED and self.has_ended():
            raise self.explain_lost()
        return code if code >= 0 else 128 - code

    def close(self) -> None:
        """End the login and everything that uses it."""
        if self.is_alive():
            command = [self._ssh.program, "-S", self._socket, "-O", "exit", "--", self._ssh.target]
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        end_login(self._login)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> OpenSshTransport:
        return self

    def is_alive(self) -> bool:
        """True as long as the login stands."""
        # ssh removes its socket first and then ends.
        return os.path.exists(self._socket) and self._login.poll() is None

    def has_ended(self) -> bool:
        """True when the login has ended, or ends in a moment."""
        deadline = time.monotonic() + LOGIN_ENDS_WITHIN_S
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def explain_lost(self) -> DeployError:
        """Return the error to raise when the login has ended by itself, with what ssh wrote about it."""
        said = read_log(self._folder)
        return TransferError(
            f"the connection to {self.address} was lost" + (f": {said.splitlines()[-1]}" if said else ""),
            remedy="run the command again: what has arrived is kept, and the running release is as it was",
        )

    @property
    def _socket(self) -> str:
        return str(self._folder / "s")

    def _call(self, kind: str, command: str) -> list[str]:
        # The socket alone says where to go. ProxyCommand=false: should the login be gone at this very moment, there
        # is no new one behind the user's back.
        options = ["-S", self._socket, "-o", "ControlMaster=no", "-o", "ProxyCommand=false", "-o", "BatchMode=yes"]
        options += ["-o", "LogLevel=ERROR", "-o", "EscapeChar=none"]
        for name, value in NO_EXTRAS.items():
            options += ["-o", f"{name}={value}"]
        return [self._ssh.program, *self._ssh.options, *options, kind, "--", self._ssh.target, wrap_command(command)]

    def _check_alive(self) -> None:
        if not self.is_alive():
            raise self.explain_lost()


class OpenSshProcess(PipeProcess):
    """A command on the device, talked to through an ssh process here."""

    def __init__(self, transport: OpenSshTransport, command: list[str], stall_timeout_s: float) -> None:
        super().__init__(command, stall_timeout_s=stall_timeout_s)
        self._transport = transport

    def write(self, data: bytes | memoryview) -> None:
        """Send all of `data`. TransferError when the command or the connection is gone, or takes nothing."""
        try:
            super().write(data)
        except TransferError as error:
            if self._transport.has_ended():
                raise self._transport.explain_lost() from error
            raise

    def wait(self) -> int:
        """Return the exit code; -1 when the connection ended before it was told."""
        code = super().wait()
        return -1 if code == CONNECTION_ENDED and self._transport.has_ended() else code
