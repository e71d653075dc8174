"""The SSH transport. This file and its ssh_* neighbours are the only users of paramiko."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import paramiko

from edgeawq.deploy.ssh_auth import AskSecret, log_in
from edgeawq.deploy.ssh_config import Endpoint
from edgeawq.deploy.ssh_errors import (
    CONNECTION_FAILURES,
    explain_connect_failure,
    explain_handshake_failure,
    explain_lost_connection,
)
from edgeawq.deploy.ssh_known_hosts import (
    HostKeyFinding,
    format_fingerprint,
    judge_host_key,
    load_known_hosts,
    name_host,
    preferred_key_types,
    record_host_key,
)
from edgeawq.deploy.ssh_process import SshProcess
from edgeawq.deploy.transport import STALL_TIMEOUT_S, RemoteProcess, TransportBase, wrap_command
from edgeawq.errors import DeployError, HostKeyError, UnreachableError

# paramiko would ask for CTR with a separate MAC first; GCM is faster (docs/push.md).
FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
KEEPALIVE_S = 15
DEAD_PEER_MS = 60_000
TCP_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", 18)


@dataclass(frozen=True)
class HostKeyQuestion:
    """A host key that is not on record yet, put to the user."""

    endpoint: Endpoint
    key_type: str
    fingerprint: str  # "SHA256:…", as `ssh-keygen -l` shows it


DecideHostKey = Callable[[HostKeyQuestion], Literal["record", "refuse"]]


def refuse_unknown_key(question: HostKeyQuestion) -> Literal["record", "refuse"]:
    """The strict default: a host that is not in known_hosts is not talked to."""
    return "refuse"


def connect_ssh(endpoint: Endpoint, *, ask: AskSecret, decide: DecideHostKey = refuse_unknown_key) -> SshTransport:
    """Connect and log in to `endpoint`, through its jump hosts, each checked like the device itself.

    UnreachableError, HostKeyError or AuthenticationError say what failed, and on which hop.
    """
    opened: list[paramiko.Transport] = []
    try:
        for hop in (*endpoint.jumps, endpoint):
            stream = _open_through(opened[-1], hop) if opened else _open_socket(hop)
            opened.append(_start_session(stream, hop, decide))
            log_in(opened[-1], hop, ask)
    except BaseException:
        for transport in reversed(opened):
            transport.close()
        raise
    return SshTransport(endpoint, opened)


class SshTransport(TransportBase):
    """A logged-in SSH connection; `transports` are the jump hosts' connections and, last, the device's own."""

    def __init__(self, endpoint: Endpoint, transports: list[paramiko.Transport]) -> None:
        self._endpoint = endpoint
        self._transports = transports

    @property
    def address(self) -> str:
        """user@host:port"""
        return self._endpoint.address

    @property
    def cipher(self) -> str:
        """The cipher in use towards the device."""
        return str(self._transports[-1].local_cipher)

    def start(self, command: str, *, stall_timeout_s: float = STALL_TIMEOUT_S) -> RemoteProcess:
        """Start a /bin/sh command with pipes on its standard input and output."""
        return SshProcess(self._open_command(command, terminal=None), self.address, stall_timeout_s)

    def run_terminal(self, command: str) -> int:
        """Run a /bin/sh command on this process's terminal, or through pipes where there is none."""
        from edgeawq.deploy.ssh_terminal import local_terminal, relay_pipes, relay_terminal

        terminal = local_terminal()
        channel = self._open_command(command, terminal=terminal)
        try:
            return relay_terminal(channel, terminal[1:]) if terminal else relay_pipes(channel)
        except CONNECTION_FAILURES as error:
            raise explain_lost_connection(error, self.address) from error
        finally:
            channel.close()

    def close(self) -> None:
        """End the connection, the device's first and then those of the jump hosts."""
        for transport in reversed(self._transports):
            with contextlib.suppress(*CONNECTION_FAILURES):
                transport.close()

    def __enter__(self) -> SshTransport:
        return self

    def _open_command(self, command: str, terminal: tuple[str, int, int] | None) -> paramiko.Channel:
        try:
            channel = self._transports[-1].open_session(timeout=STALL_TIMEOUT_S)
            if terminal:
                name, columns, rows = terminal
                channel.get_pty(name, columns, rows)
            channel.exec_command(wrap_command(command))
        except paramiko.ChannelException as error:
            raise DeployError(
                f"{self.address} refuses to start a command: {error}",
                remedy="MaxSessions in sshd_config may be too low",
            ) from error
        except CONNECTION_FAILURES as error:
            raise explain_lost_connection(error, self.address) from error
        return channel


def _open_socket(endpoint: Endpoint) -> socket.socket:
    try:
        stream = socket.create_connection((endpoint.host, endpoint.port), timeout=endpoint.connect_timeout_s)
    except (OSError, UnicodeError) as error:
        raise explain_connect_failure(error, endpoint) from error
    # Small requests must not wait for Nagle, and a peer that has vanished must be noticed in a minute, not in 15.
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, DEAD_PEER_MS)
    return stream


def _open_through(jump: paramiko.Transport, endpoint: Endpoint) -> Any:
    try:
        return jump.open_channel(
            "direct-tcpip",
            (endpoint.host, endpoint.port),
            ("127.0.0.1", 0),
            timeout=endpoint.connect_timeout_s,
        )
    except paramiko.ChannelException as error:
        raise UnreachableError(
            f"{endpoint.label}: the jump host cannot connect to {endpoint.host} port {endpoint.port}: {error}",
            remedy="check the address as seen from the jump host, and AllowTcpForwarding in its sshd_config",
        ) from error
    except CONNECTION_FAILURES as error:
        raise explain_connect_failure(error, endpoint) from error


def _start_session(stream: Any, endpoint: Endpoint, decide: DecideHostKey) -> paramiko.Transport:
    """Shake hands over `stream` and check the host key; nothing secret has been sent when this fails."""
    entries = load_known_hosts(endpoint.known_hosts_files)
    host_name = endpoint.host_key_alias.lower() or name_host(endpoint.host, endpoint.port)
    try:
        transport = paramiko.Transport(stream)
    except CONNECTION_FAILURES as error:
        stream.close()
        raise explain_handshake_failure(error, endpoint) from error
    # paramiko logs what it also raises; without a handler of its own that would end up on standard error.
    logger = logging.getLogger(f"edgeawq.paramiko.{id(transport)}")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    transport.set_log_channel(logger.name)
    try:
        options = transport.get_security_options()
        options.ciphers = [name for name in FAST_CIPHERS if name in options.ciphers]
        wanted = preferred_key_types(entries, host_name)
        offered = list(options.key_types)
        options.key_types = [name for name in wanted if name in offered] + [n for n in offered if n not in wanted]
        transport.banner_timeout = endpoint.connect_timeout_s
        try:
            transport.start_client(timeout=endpoint.connect_timeout_s)
        except CONNECTION_FAILURES as error:
            raise explain_handshake_failure(error, endpoint) from error
        if not transport.initial_kex_done:  # start_client comes back without an error when its time is over
            raise explain_handshake_failure(TimeoutError(), endpoint)
        key = transport.get_remote_server_key()
        finding = judge_host_key(entries, host_name, key.asbytes())
        if finding.verdict == "unknown":
            _settle_unknown_key(endpoint, host_name, key.get_name(), key.asbytes(), decide)
        elif finding.verdict != "known":
            raise _explain_wrong_key(endpoint, host_name, key.get_name(), key.asbytes(), finding)
        transport.set_keepalive(KEEPALIVE_S)
    except BaseException:
        transport.close()
        raise
    return transport


def _settle_unknown_key(endpoint: Endpoint, host_name: str, key_type: str, key: bytes, decide: DecideHostKey) -> None:
    question = HostKeyQuestion(endpoint, key_type, format_fingerprint(key))
    if decide(question) == "record":
        record_host_key(endpoint.known_hosts_files[0], host_name, key_type, key, hash_name=endpoint.hash_known_hosts)
        return
    raise HostKeyError(
        f"{endpoint.label}: the host key of {host_name} is not known: {key_type} {question.fingerprint}",
        remedy=f"compare it with `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` on the device, then accept it with "
        f"`edgeawq device add {endpoint.label} {endpoint.address}`",
    )


def _explain_wrong_key(
    endpoint: Endpoint, host_name: str, key_type: str, key: bytes, finding: HostKeyFinding
) -> HostKeyError:
    shown = f"{key_type} {format_fingerprint(key)}"
    if finding.verdict == "revoked":
        where = f"{finding.entries[0].path} line {finding.entries[0].line}"
        return HostKeyError(
            f"{endpoint.label}: the host key of {host_name} is marked as revoked in {where}: {shown}",
            remedy="do not use this device until its host key has been replaced",
        )
    on_record = "; ".join(
        f"{entry.key_type} {format_fingerprint(entry.key)} ({entry.path} line {entry.line})"
        for entry in finding.entries
    )
    files = sorted({entry.path for entry in finding.entries})
    commands = " && ".join(f"ssh-keygen -R '{host_name}' -f '{path}'" for path in files)
    return HostKeyError(
        f"{endpoint.label}: {host_name} shows another host key than before. Shown: {shown}. On record: {on_record}",
        remedy=f"someone may be listening in, or the device was installed anew. Only if you know that it was: "
        f"`{commands}`, then `edgeawq device add {endpoint.label} {endpoint.address}`",
    )
