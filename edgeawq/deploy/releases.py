"""What is on a device: status, history, going back, clearing up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edgeawq.deploy.device_facts import DeviceFacts, choose_python, gather_facts
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.push import LOCK_WAIT_S, name_owner
from edgeawq.deploy.receiver_client import ReceiverClient
from edgeawq.deploy.transport import Transport
from edgeawq.errors import DeployError, HealthCheckError, UsageError


@dataclass(frozen=True)
class DeviceStatus:
    """What a device is and what runs on it. `releases` are plain data, the newest first."""

    device: str
    address: str
    facts: DeviceFacts
    current: str | None
    previous: str | None
    releases: list[dict[str, Any]]
    history: list[dict[str, Any]]
    lock: dict[str, Any] | None
    free_bytes: int
    trust: dict[str, Any] = field(default_factory=dict)  # which keys it has pinned; see device_trust

    def to_json(self) -> dict[str, Any]:
        """Return the status as plain data."""
        return {**asdict(self), "facts": self.facts.to_json()}

    def find(self, identity: str | None) -> dict[str, Any] | None:
        """Return the release called `identity`."""
        return next((release for release in self.releases if release["id"] == identity), None)


@dataclass(frozen=True)
class RollbackReport:
    """What a rollback has done."""

    device: str
    release: str
    previous: str | None
    health: dict[str, Any]
    health_s: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)


def read_status(transport: Transport, device: Device) -> DeviceStatus:
    """Ask a device for its facts and releases; nothing there is changed, and no lock is needed."""
    facts = gather_facts(transport, device)
    with _open(transport, device, facts) as client:
        answer = client.call("status")
    return DeviceStatus(
        device=device.name,
        address=transport.address,
        facts=facts,
        current=answer["current"],
        previous=answer["previous"],
        releases=list(answer["releases"]),
        history=list(answer["history"]),
        lock=answer["lock"],
        free_bytes=int(answer["free"]),
        trust=dict(answer["trust"]),
    )


def roll_back(
    transport: Transport,
    device: Device,
    release: str = "",
    *,
    health_timeout_s: float = 300.0,
    break_lock: bool = False,
    on_stage: Callable[[str], None] = lambda text: None,
) -> RollbackReport:
    """Switch `device` to an earlier release: the one named (an unambiguous beginning will do), or the one before.

    It is checked before anything points at it: HealthCheckError leaves the device as it is.
    """
    status = read_status(transport, device)
    target = choose_release(status, release)
    with _open(transport, device, status.facts, _required_python(status, target)) as client:
        client.call("lock", owner=name_owner(), wait_s=LOCK_WAIT_S, force=break_lock)
        on_stage(f"health check of release {target}")
        try:
            checked = client.call("check", release=target, timeout_s=health_timeout_s)
        except HealthCheckError as error:
            raise HealthCheckError(
                f"{error.what}; the device goes on with release {status.current}", remedy=error.remedy
            ) from error
        client.call("switch", release=target)
        client.call("unlock")
    return RollbackReport(device.name, target, status.current, checked["result"], float(checked["seconds"]))


def collect_garbage(
    transport: Transport, device: Device, keep: int, *, break_lock: bool = False
) -> tuple[list[str], int]:
    """Remove all releases but the newest `keep`; return their names and the bytes that became free.

    The current, the previous and any release that is running at this moment always stay.
    """
    facts = gather_facts(transport, device)
    with _open(transport, device, facts) as client:
        client.call("lock", owner=name_owner(), wait_s=LOCK_WAIT_S, force=break_lock)
        answer = client.call("gc", keep=keep)
        client.call("unlock")
    return list(answer["removed"]), int(answer["freed"])


def choose_release(status: DeviceStatus, wanted: str) -> str:
    """Return the full name of the release to go back to. DeployError or UsageError when there is none."""
    names = [str(release["id"]) for release in status.releases]
    if wanted:
        found = [name for name in names if name.startswith(wanted)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(f"{wanted!r} fits {len(found)} releases: {', '.join(found)}", remedy="write more of it")
        raise DeployError(
            f"{status.device} has no release {wanted!r}",
            remedy=f"it has {', '.join(names)}" if names else "push to it first",
        )
    if status.previous and status.previous != status.current:
        return status.previous
    for event in reversed(status.history):
        before = event.get("from")
        if before in names and before != status.current:
            return str(before)
    raise DeployError(
        f"{status.device} has no earlier release to go back to",
        remedy=f"`edgeawq history {status.device}` lists the releases that are there",
    )


def _open(transport: Transport, device: Device, facts: DeviceFacts, series: str = "") -> ReceiverClient:
    """Start the receiver with Python `series` if the device has it, else with the default one."""
    python = choose_python(facts, device.python)
    if series and series != python.series:
        # The system's Python is another one than when this release was pushed; the old one may still be there.
        older = gather_facts(transport, replace(device, python=f"python{series}")).pythons
        python = next((entry for entry in older if entry.series == series and entry.bits == 64), python)
    return ReceiverClient(transport, python=python.path, root=device.root)


def _required_python(status: DeviceStatus, identity: str) -> str:
    release = status.find(identity) or {}
    requires = release.get("requires")
    return str(requires.get("python", "")) if isinstance(requires, dict) else ""
