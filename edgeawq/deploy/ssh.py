"""The SSH transport. This file and its ssh_* neighbours are the only users of paramiko."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import paramiko

from edgeawq.deploy.ssh_auth import AskSecret, log_in
from edgeawq.deploy.ssh_ciphers import MACS_WITHOUT_AES
from edgeawq.deploy.ssh_config import Endpoint
from edgeawq.deploy.ssh_errors import (
    CONNECTION_FAILURES,
    explain_connect_failure,
    explain_handshake_failure,
    explain_host_certificate,
    explain_lost_connection,
    explain_unknown_key,
    explain_wrong_key,
)
from edgeawq.deploy.ssh_known_hosts import (
    format_fingerprint,
    judge_host_key,
    load_known_hosts,
    name_host,
    preferred_key_types,
    record_host_key,
)
from edgeawq.deploy.ssh_packets import BatchTransport
from edgeawq.deploy.ssh_process import SshProcess
from edgeawq.deploy.ssh_proxy_command import ProxyCommandSocket
from edgeawq.deploy.transport import DEAD_PEER_S, STALL_TIMEOUT_S, RemoteProcess, TransportBase, wrap_command
from edgeawq.errors import DeployError, UnreachableError, UsageError

# paramiko would ask for CTR with a separate MAC first; GCM is faster (docs/push.md).
FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
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


def connect_ssh(
    endpoint: Endpoint,
    *,
    ask: AskSecret,
    decide: DecideHostKey = refuse_unknown_key,
    dead_after_s: float = DEAD_PEER_S,
) -> SshTransport:
    """Connect and log in to `endpoint`, through its jump hosts, each checked like the device itself.

    dead_after_s: a peer that has said nothing for that long, asked for a sign of life, is given up.

    UnreachableError, HostKeyError or AuthenticationError say what failed, and on which hop.
    """
    opened: list[BatchTransport] = []
    try:
        for hop in (*endpoint.jumps, endpoint):
            stream = _open_through(opened[-1], hop) if opened else _open_socket(hop, dead_after_s)
            opened.append(_start_session(stream, hop, decide))
            log_in(opened[-1], hop, ask)
            opened[-1].watch_peer(dead_after_s)
    except BaseException:
        for transport in reversed(opened):
            transport.close()
        raise
    return SshTransport(endpoint, opened)


class SshTransport(TransportBase):
    """A logged-in SSH connection; `transports` are the jump hosts' connections and, last, the device's own."""

    def __init__(self, endpoint: Endpoint, transports: Sequence[paramiko.Transport]) -> None:
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


def choose_ciphers(endpoint: Endpoint, available: Sequence[str]) -> list[str]:
    """Return the ciphers to offer, the preferred first. UsageError when none of those wished for is available."""
    if not endpoint.ciphers:
        return [name for name in FAST_CIPHERS if name in available]
    chosen = [name for name in endpoint.ciphers if name in available]
    if not chosen:
        raise UsageError(
            f"{endpoint.label}: cipher = {','.join(endpoint.ciphers)!r}: the built-in SSH transport has none of these",
            remedy=f'it has {", ".join(available)}; transport = "openssh" has all that `ssh -Q cipher` lists',
        )
    return chosen


def _open_socket(endpoint: Endpoint, dead_after_s: float) -> socket.socket:
    if endpoint.proxy_command:
        return ProxyCommandSocket(endpoint.proxy_command)
    try:
        stream = socket.create_connection((endpoint.host, endpoint.port), timeout=endpoint.connect_timeout_s)
    except (OSError, UnicodeError) as error:
        raise explain_connect_failure(error, endpoint) from error
    # Small requests must not wait for Nagle, and a peer that has vanished must be noticed in a minute, not in 15.
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, int(dead_after_s * 1000))
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


def _start_session(stream: Any, endpoint: Endpoint, decide: DecideHostKey) -> BatchTransport:
    """Shake hands as in `_shake_hands`; where a ProxyCommand has failed, say what it wrote."""
    try:
        return _shake_hands(stream, endpoint, decide)
    except UnreachableError as error:
        if isinstance(stream, ProxyCommandSocket):
            said = stream.read_errors() or error.what
            raise UnreachableError(
                f"{endpoint.label}: the ProxyCommand `{endpoint.proxy_command}` gave no connection: {said}",
                remedy="run that command by hand: it should print the line that an SSH server begins with",
            ) from error
        raise


def _shake_hands(stream: Any, endpoint: Endpoint, decide: DecideHostKey) -> BatchTransport:
    """Shake hands over `stream` and check the host key; nothing secret has been sent when this fails."""
    entries = load_known_hosts(endpoint.known_hosts_files)
    host_name = endpoint.host_key_alias.lower() or name_host(endpoint.host, endpoint.port)
    try:
        transport = BatchTransport(stream)
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
        options.ciphers = choose_ciphers(endpoint, options.ciphers)
        if endpoint.ciphers and "-gcm" not in options.ciphers[0]:
            first = [name for name in MACS_WITHOUT_AES if name in options.digests]
            options.digests = [*first, *(name for name in options.digests if name not in first)]
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
        if finding.verdict == "unknown" and finding.entries:
            raise explain_host_certificate(endpoint, host_name, finding)
        if finding.verdict == "unknown":
            _settle_unknown_key(endpoint, host_name, key.get_name(), key.asbytes(), decide)
        elif finding.verdict != "known":
            shown = f"{key.get_name()} {format_fingerprint(key.asbytes())}"
            raise explain_wrong_key(endpoint, host_name, shown, finding)
    except BaseException:
        transport.close()
        stream.close()  # paramiko leaves it open when it has not begun yet
        raise
    return transport


def _settle_unknown_key(endpoint: Endpoint, host_name: str, key_type: str, key: bytes, decide: DecideHostKey) -> None:
    question = HostKeyQuestion(endpoint, key_type, format_fingerprint(key))
    if decide(question) == "record":
        record_host_key(endpoint.known_hosts_files[0], host_name, key_type, key, hash_name=endpoint.hash_known_hosts)
        return
    raise explain_unknown_key(endpoint, host_name, question.key_type, question.fingerprint)
