"""What paramiko and the operating system say about a failed connection, turned into messages with a remedy."""

from __future__ import annotations

import errno
import socket

import paramiko
from paramiko.ssh_exception import IncompatiblePeer

from edgeawq.deploy.ssh_config import Endpoint
from edgeawq.deploy.ssh_known_hosts import HostKeyFinding, format_fingerprint
from edgeawq.errors import AuthenticationError, DeployError, EdgeawqError, HostKeyError, UnreachableError

# Everything that connecting and talking may raise, apart from our own errors.
CONNECTION_FAILURES = (OSError, EOFError, paramiko.SSHException)


def explain_connect_failure(error: BaseException, endpoint: Endpoint) -> EdgeawqError:
    """Return the error to raise when a TCP connection to `endpoint` could not be made."""
    if isinstance(error, EdgeawqError):
        return error
    where = f"{endpoint.label} ({endpoint.host} port {endpoint.port})"
    if isinstance(error, socket.gaierror):
        return UnreachableError(
            f"{where}: the host name {endpoint.host!r} is not known: {error.strerror}",
            remedy="check the name in the inventory and in ~/.ssh/config; a .local name needs mDNS (avahi) here",
        )
    if isinstance(error, TimeoutError):
        return UnreachableError(
            f"{where} did not answer within {endpoint.connect_timeout_s:.0f} s",
            remedy="is the device switched on and on this network? ConnectTimeout in ~/.ssh/config sets the wait",
        )
    if isinstance(error, ConnectionRefusedError):
        return UnreachableError(
            f"{where}: the device is there, but refuses connections on port {endpoint.port}",
            remedy="is sshd running there (`sudo systemctl enable --now ssh`), and is it the right port?",
        )
    if isinstance(error, OSError) and error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN):
        return UnreachableError(
            f"{where}: {error.strerror}", remedy="check the address, the cable or Wi-Fi, and VPN or routing"
        )
    return UnreachableError(f"{where}: no connection: {error}", remedy=f"try `ssh -v {endpoint.host}`")


def explain_handshake_failure(error: BaseException, endpoint: Endpoint) -> EdgeawqError:
    """Return the error to raise when the SSH handshake with `endpoint` failed."""
    if isinstance(error, EdgeawqError):
        return error
    where = f"{endpoint.label} ({endpoint.host} port {endpoint.port})"
    if isinstance(error, IncompatiblePeer):
        return UnreachableError(
            f"{where}: no common cipher or key exchange: {error}", remedy="update OpenSSH on the device"
        )
    if "banner" in str(error) or isinstance(error, (EOFError, ConnectionResetError, ConnectionAbortedError)):
        return UnreachableError(
            f"{where} does not answer like an SSH server: {error or 'the connection was closed'}",
            remedy="is this the right port? sshd also closes connections when too many are waiting (MaxStartups)",
        )
    if isinstance(error, TimeoutError):
        return UnreachableError(
            f"{where} does not answer like an SSH server: no handshake within {endpoint.connect_timeout_s:.0f} s",
            remedy="is this the right port? A busy device may need a longer ConnectTimeout in ~/.ssh/config",
        )
    return UnreachableError(f"{where}: the SSH handshake failed: {error}", remedy=f"try `ssh -v {endpoint.host}`")


def explain_login_refused(endpoint: Endpoint, tried: list[str], allowed: list[str]) -> AuthenticationError:
    """Return the error to raise when no key and no password was accepted."""
    what = f"{endpoint.label}: the login {endpoint.address} was refused"
    what += f" (tried: {'; '.join(tried)})" if tried else " (there was no key and no password to try)"
    remedies = []
    if any("password" in way for way in tried):
        remedies.append("check the password and the user name")
    if not allowed or "publickey" in allowed:
        target = f"-p {endpoint.port} {endpoint.user}@{endpoint.host}"
        remedies.append(f"put your key on the device with `ssh-copy-id {target}`, or name it with identity_file")
    if any(way in allowed for way in ("password", "keyboard-interactive")) and not any("password" in t for t in tried):
        remedies.append("run in a terminal to be asked for the password, or set EDGEAWQ_SSH_PASSWORD")
    return AuthenticationError(what, remedy="; ".join(remedies))


def explain_lost_connection(error: BaseException, address: str) -> DeployError:
    """Return the error to raise when an established connection has ended by itself."""
    from edgeawq.errors import TransferError

    if isinstance(error, TimeoutError):
        return TransferError(
            f"{address}: nothing moved for too long; the connection was given up",
            remedy="check the network and run the command again: what has arrived is kept",
        )
    return TransferError(
        f"the connection to {address} was lost: {error or type(error).__name__}",
        remedy="run the command again: what has arrived is kept, and the running release is as it was",
    )


def explain_unknown_key(endpoint: Endpoint, host_name: str, key_type: str, fingerprint: str) -> HostKeyError:
    """Return the error to raise for a host key that is not on record and was not accepted."""
    return HostKeyError(
        f"{endpoint.label}: the host key of {host_name} is not known: {key_type} {fingerprint}",
        remedy=f"compare it with `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` on the device, then accept it with "
        f"`edgeawq device add {endpoint.label} {endpoint.address}`",
    )


def explain_host_certificate(endpoint: Endpoint, host_name: str, finding: HostKeyFinding) -> HostKeyError:
    """Return the error to raise for a host that is known by its certificate only, which paramiko cannot check."""
    where = f"{finding.entries[0].path} line {finding.entries[0].line}"
    return HostKeyError(
        f"{endpoint.label}: {host_name} is known by a certificate authority only ({where}), and the built-in SSH "
        f"transport cannot check host certificates",
        remedy='set transport = "openssh" for this device in the inventory (`edgeawq device add --transport openssh`), '
        "which uses the system's ssh",
    )


def explain_wrong_key(endpoint: Endpoint, host_name: str, shown: str, finding: HostKeyFinding) -> HostKeyError:
    """Return the error to raise for a host key that is revoked or differs; `shown` is its type and fingerprint."""
    if finding.verdict == "revoked":
        where = f" in {finding.entries[0].path} line {finding.entries[0].line}" if finding.entries else ""
        return HostKeyError(
            f"{endpoint.label}: the host key of {host_name} is marked as revoked{where}: {shown}",
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
