"""What the system's ssh writes when it cannot connect, turned into the same errors as those of the other transport."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from edgeawq.deploy.ssh_config import Endpoint
from edgeawq.deploy.ssh_errors import (
    explain_connect_failure,
    explain_handshake_failure,
    explain_login_refused,
    explain_unknown_key,
    explain_wrong_key,
)
from edgeawq.deploy.ssh_known_hosts import HostKeyFinding, load_known_hosts, name_host
from edgeawq.errors import EdgeawqError, HostKeyError, UnreachableError, UsageError


def is_unknown_host_key(log: str) -> bool:
    """True when ssh has refused a host of which no key is on record."""
    return bool(re.search(r"No \S+ host key is known for", log))


def explain_system_ssh(log: str, endpoint: Endpoint, *, interactive: bool) -> EdgeawqError:
    """Return the error to raise when ssh has ended with `log` before it was logged in."""
    last = log.splitlines()[-1].strip()
    if "Host key verification failed" in log or "host key" in last.lower():
        return _explain_host_key(log, endpoint)
    if re.search(r"Permission denied|Too many authentication failures", log):
        found = re.search(r"Permission denied \(([^)]*)\)", log)
        allowed = found.group(1).split(",") if found else []
        error = explain_login_refused(endpoint, [f"key {path}" for path in endpoint.identity_files], allowed)
        if not interactive:
            error.remedy = error.remedy.replace(", or set EDGEAWQ_SSH_PASSWORD", " by ssh itself")
        return error
    if "open failed" in log or "stdio forwarding failed" in log:
        return UnreachableError(
            f"{endpoint.label}: the jump host cannot connect to {endpoint.host} port {endpoint.port}: "
            f"{log.splitlines()[0]}",
            remedy="check the address as seen from the jump host, and AllowTcpForwarding in its sshd_config",
        )
    if "UNKNOWN port" in log:
        said = "; ".join(line.strip() for line in log.splitlines() if "UNKNOWN port" not in line)
        return UnreachableError(
            f"{endpoint.label}: the jump host or ProxyCommand gave no connection: {said or last}",
            remedy=f"try `ssh -v {endpoint.host}`",
        )
    if "Could not resolve hostname" in log:
        return explain_connect_failure(socket.gaierror(0, last.rpartition(": ")[2]), endpoint)
    if "Connection refused" in log:
        return explain_connect_failure(ConnectionRefusedError(last), endpoint)
    if re.search(r"banner exchange|kex_exchange_identification|Bad packet length|Connection (closed|reset) by", log):
        return explain_handshake_failure(EOFError(last), endpoint)
    if re.search(r"timed out|Operation timed out", log):
        return explain_connect_failure(TimeoutError(last), endpoint)
    if re.search(r"Unable to negotiate|no matching", log):
        return UnreachableError(
            f"{endpoint.label} ({endpoint.host} port {endpoint.port}): no common cipher or key exchange: {last}",
            remedy="update OpenSSH on the device, or change Ciphers or `cipher` here",
        )
    if re.search(r"[Bb]ad configuration option|terminating, \d+ bad", log):
        return UsageError(f"{endpoint.label}: ssh does not accept its configuration: {log[-500:]}")
    return explain_connect_failure(OSError(last), endpoint)


def _explain_host_key(log: str, endpoint: Endpoint) -> EdgeawqError:
    if "UNKNOWN port" in log and endpoint.jumps:  # the connection that failed is not the one to the device
        names = " or ".join(jump.label for jump in endpoint.jumps)
        return HostKeyError(
            f"{endpoint.label}: the host key of the jump host {names} was not accepted: {log.splitlines()[0]}",
            remedy=f"log in to it once with `ssh {endpoint.jumps[-1].label}`, which shows its key and records it",
        )
    found = re.search(r"SHA256:[A-Za-z0-9+/]+", log)
    kind = re.search(r"for the (\S+) key sent", log)
    shown = f"{kind.group(1) if kind else 'a key'} {found.group()}" if found else log.splitlines()[0]
    name = endpoint.host_key_alias or name_host(endpoint.host, endpoint.port)
    if re.search(r"REVOKED|revoked", log):
        return explain_wrong_key(endpoint, name, shown, HostKeyFinding("revoked"))
    if "IDENTIFICATION HAS CHANGED" in log:
        offending = re.findall(r"Offending .*? key in (.+?):(\d+)", log)
        on_record = [
            entry
            for path, line in offending
            for entry in load_known_hosts([Path(path)])
            if entry.line == int(line) and not entry.marker
        ]
        return explain_wrong_key(endpoint, name, shown, HostKeyFinding("changed", tuple(on_record)))
    return explain_unknown_key(endpoint, name, "ssh says:", log.splitlines()[0])
