"""Opening a connection to a device of the inventory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeawq.deploy.inventory import Device
from edgeawq.deploy.local import LocalTransport
from edgeawq.deploy.transport import DEAD_PEER_S, Transport

if TYPE_CHECKING:
    from edgeawq.deploy.ssh import DecideHostKey
    from edgeawq.deploy.ssh_auth import AskSecret


def ask_nobody(question: str) -> str | None:
    """The answer to a question for a password when there is nobody to ask."""
    return None


def connect(
    device: Device,
    *,
    ask: AskSecret = ask_nobody,
    decide: DecideHostKey | None = None,
    dead_after_s: float = DEAD_PEER_S,
) -> Transport:
    """Connect to `device`: this machine without SSH, every other one over SSH with a strict host key check.

    The system's ssh (transport "openssh") asks by itself, at the terminal, and only where `ask` may ask at all.

    ask: called for a passphrase or password; decide: called for a host key that is not on record, refused without.
    dead_after_s: a device that gives no sign of life for that long is given up.
    """
    if device.is_local:
        return LocalTransport()
    if device.transport == "openssh":
        from edgeawq.deploy.ssh_prompt import has_terminal
        from edgeawq.deploy.ssh_system import connect_openssh

        interactive = ask is not ask_nobody and has_terminal()
        return connect_openssh(device, interactive=interactive, decide=decide, dead_after_s=dead_after_s)
    # Imported here: a device that chats with itself needs no paramiko.
    from edgeawq.deploy.ssh import connect_ssh, refuse_unknown_key
    from edgeawq.deploy.ssh_config import resolve_endpoint

    return connect_ssh(
        resolve_endpoint(device), ask=ask, decide=decide or refuse_unknown_key, dead_after_s=dead_after_s
    )
