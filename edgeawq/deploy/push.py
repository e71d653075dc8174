"""Push: bring a bundle to a device as a new release, check it there, and switch to it."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from edgeawq.deploy.device_facts import DeviceFacts, choose_python, gather_facts
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.preflight import check_fit
from edgeawq.deploy.receiver_client import ReceiverClient
from edgeawq.deploy.release import Release, describe_release, list_bundle, list_site
from edgeawq.deploy.site import prepare_site
from edgeawq.deploy.transport import Transport
from edgeawq.deploy.upload import Sent, UploadOptions, upload
from edgeawq.errors import HealthCheckError

LOCK_WAIT_S = 5.0  # a push that was killed a moment ago is still letting go of its lock

# (Python series, machine, who is told what is going on) → folder
PrepareSite = Callable[[str, str, Callable[[str], None]], Path]


@dataclass(frozen=True)
class PushOptions:
    """How to push."""

    health_timeout_s: float = 300.0
    keep: int = 3  # releases to keep on the device; the current and the previous one always stay
    break_lock: bool = False
    verify: bool = False  # hash again on the device what is there already, and check its answer again
    dry_run: bool = False
    upload: UploadOptions = field(default_factory=UploadOptions)


# (release, "trust" of the device's status) → the signed envelope as text, or "" for none
SignRelease = Callable[[Release, dict[str, Any]], str]


def sign_nothing(release: Release, trust: dict[str, Any]) -> str:
    """Send no signature: enough for a device on which no key is pinned."""
    return ""


@dataclass(frozen=True)
class PushReport:
    """What a push has done. Sizes are bytes, times seconds."""

    device: str
    address: str
    release: str
    previous: str | None  # what ran before; None on the first push
    changed: bool  # False: this very release was running already
    dry_run: bool
    files: int
    total_bytes: int
    files_sent: int
    bytes_sent: int  # content
    wire_bytes: int  # the same as it was sent: compressed where that was quicker
    channels: int
    upload_s: float
    health: dict[str, Any]  # what the golden prompt's run printed; empty when nothing had changed since a good one
    health_s: float
    repaired: list[str] = field(default_factory=list)  # damaged files on the device that were replaced
    removed_releases: list[str] = field(default_factory=list)
    copied_bytes: int = 0  # taken from other releases on the device
    trust: dict[str, Any] = field(default_factory=dict)  # what the device found about the signature
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    emulator: str = ""  # what the device is emulated by; empty for a real one

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)


class PushListener(Protocol):
    """Who is told how a push goes on."""

    def stage(self, text: str) -> None:
        """A new step begins."""

    def note(self, text: str) -> None:
        """Something worth reading that stops nothing."""

    def upload_begins(self, files: int, total_bytes: int) -> None:
        """So much is going to be sent."""

    def upload_advanced(self, count: int) -> None:
        """`count` more bytes were sent."""

    def upload_ended(self) -> None:
        """All of it has arrived."""


class SilentListener:
    """A listener for callers who want to know nothing."""

    def stage(self, text: str) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""

    def upload_begins(self, files: int, total_bytes: int) -> None:
        """Ignored."""

    def upload_advanced(self, count: int) -> None:
        """Ignored."""

    def upload_ended(self) -> None:
        """Ignored."""


def push(
    transport: Transport,
    device: Device,
    bundle: Path,
    options: PushOptions | None = None,
    *,
    listener: PushListener | None = None,
    facts: DeviceFacts | None = None,
    site: PrepareSite = prepare_site,
    sign: SignRelease = sign_nothing,
) -> PushReport:
    """Make `bundle` the running release of `device`, or leave everything there as it is and raise.

    Before the first byte: DeviceUnfitError (machine, Python, memory, free space), BundleError. During the upload:
    TransferError; what has arrived is kept for the next push. After it: HealthCheckError when the golden prompt
    does not give its tokens; the device then still runs the release that it ran before.
    """
    started = time.monotonic()
    options = options or PushOptions()
    listener = listener or SilentListener()
    if facts is None:
        listener.stage("checking the device")
        facts = gather_facts(transport, device)
    python = choose_python(facts, device.python)
    manifest, files = list_bundle(bundle)
    warnings = check_fit(facts, python, manifest, where=device.name)
    for warning in warnings:
        listener.note(warning)
    listener.stage(f"preparing Python packages for {facts.machine}, Python {python.series}")
    files += list_site(site(python.series, facts.machine, listener.stage))
    release = describe_release(
        name=manifest.model.name,
        profile=manifest.device.profile,
        machine=facts.machine,
        python=python.series,
        files=files,
    )
    with ReceiverClient(transport, python=python.path, root=device.root) as client:
        if options.dry_run:
            return _report_dry_run(client, release, device, transport, sign, warnings, started)
        lock = client.call("lock", owner=name_owner(), wait_s=LOCK_WAIT_S, force=options.break_lock)
        if lock.get("replaced"):
            listener.note(f"the lock of {lock['replaced'].get('owner')} was stale or broken, and is replaced")
        report = _replace_release(client, release, device, transport, options, listener, sign, warnings, started)
    return replace(report, emulator=facts.emulator)


def name_owner() -> str:
    """Return who holds a device's lock while we push: user@host."""
    return f"{getpass.getuser()}@{socket.gethostname()}"[:200]


def _replace_release(
    client: ReceiverClient,
    release: Release,
    device: Device,
    transport: Transport,
    options: PushOptions,
    listener: PushListener,
    sign: SignRelease,
    warnings: list[str],
    started: float,
) -> PushReport:
    before = client.call("status")
    known = _is_known(before, release)
    signature = sign(release, before["trust"])
    plan = client.plan(release, known=known, signature=signature)
    sent, copied = _upload(client, release, options, listener) if plan.missing else (Sent(), 0)
    listener.stage("verifying on the device")
    repaired = list(client.call("commit")["repaired"])
    if options.verify:
        listener.stage("hashing what is on the device")
        again, mended = _repair(client, release, signature, options, listener)
        sent, repaired = _add(sent, again), repaired + mended
    newer = int(plan.trust.get("counter") or 0) > int(before["trust"].get("counter") or 0)  # the device must note that
    if _runs_well(before, release) and not (plan.missing or repaired or options.verify or newer):
        checked: dict[str, Any] = {"result": {}, "seconds": 0.0}
    else:
        checked, repair = _check(client, release, before["current"], options, listener, signature)
        sent = _add(sent, repair.sent)
        repaired += repair.repaired
        client.call("switch", release=release.identity)
    removed = client.call("gc", keep=max(options.keep, 1))["removed"]
    client.call("unlock")
    return PushReport(
        device=device.name,
        address=transport.address,
        release=release.identity,
        previous=before["current"],
        changed=before["current"] != release.identity,
        dry_run=False,
        files=len(release.files),
        total_bytes=release.total_bytes,
        files_sent=sent.files,
        bytes_sent=sent.content_bytes,
        wire_bytes=sent.wire_bytes,
        channels=sent.channels,
        upload_s=round(sent.seconds, 3),
        health=checked["result"],
        health_s=float(checked["seconds"]),
        repaired=repaired,
        removed_releases=removed,
        copied_bytes=copied,
        trust=plan.trust,
        warnings=warnings,
        seconds=round(time.monotonic() - started, 3),
    )


def _runs_well(status: dict[str, Any], release: Release) -> bool:
    """True when this very release runs on the device and its last check was good: then nothing is checked again."""
    good = any(
        entry["id"] == release.identity and entry.get("health") == "good" and not entry.get("bad_starts")
        for entry in status["releases"]
    )
    return good and status["current"] == release.identity


@dataclass
class _Repair:
    """What a health check that failed on damaged files has led to."""

    sent: Sent = field(default_factory=Sent)
    repaired: list[str] = field(default_factory=list)


def _check(
    client: ReceiverClient,
    release: Release,
    current: str | None,
    options: PushOptions,
    listener: PushListener,
    signature: str,
) -> tuple[dict[str, Any], _Repair]:
    """Run the golden prompt; where damaged files made it fail, send those anew and run it once more."""
    repair = _Repair()
    listener.stage("health check on the device")
    try:
        return client.call("check", release=release.identity, timeout_s=options.health_timeout_s), repair
    except HealthCheckError as failure:
        damaged = client.call("verify", release=release.identity)["damaged"]
        if not damaged:
            raise _explain_health(failure, current, release.identity) from failure
    listener.note(f"{len(damaged)} files on the device were damaged and are sent again")
    client.plan(release, known=True, signature=signature)
    repair.sent = _upload(client, release, options, listener)[0]
    repair.repaired = list(client.call("commit")["repaired"])
    listener.stage("health check on the device")
    try:
        return client.call("check", release=release.identity, timeout_s=options.health_timeout_s), repair
    except HealthCheckError as failure:
        raise _explain_health(failure, current, release.identity) from failure


def _is_known(status: dict[str, Any], release: Release) -> bool:
    return any(entry["id"] == release.identity and "damaged" not in entry for entry in status["releases"])


def _add(one: Sent, other: Sent) -> Sent:
    return Sent(
        one.files + other.files,
        one.content_bytes + other.content_bytes,
        one.wire_bytes + other.wire_bytes,
        one.seconds + other.seconds,
        max(one.channels, other.channels),
    )


def _repair(
    client: ReceiverClient, release: Release, signature: str, options: PushOptions, listener: PushListener
) -> tuple[Sent, list[str]]:
    """Let the device hash the release; send again what is damaged. Return what was sent, and the damaged files."""
    damaged = list(client.call("verify", release=release.identity)["damaged"])
    if not damaged:
        return Sent(), []
    listener.note(f"{len(damaged)} files on the device were damaged and are sent again")
    client.plan(release, known=True, signature=signature)
    sent, _ = _upload(client, release, options, listener)
    return sent, list(client.call("commit")["repaired"])


def _upload(client: ReceiverClient, release: Release, options: PushOptions, listener: PushListener) -> tuple[Sent, int]:
    """Bring what the planned release lacks to the device; return what was sent, and the bytes found there."""
    listener.stage("looking for what the device has")
    missing, copied = client.assemble()
    if not missing:
        client.call("flush")
        return Sent(), copied
    files = {entry.file for entry in missing}
    size = sum(
        sum(length for length, _ in release.files[entry.file].chunks[entry.first : entry.first + entry.count])
        for entry in missing
    )
    here = sum(release.files[index].size for index in files) - size
    if here:
        listener.note(f"{here / 1e6:.1f} MB of {len(files)} files are on the device already and are not sent again")
    listener.stage(f"uploading {len(files)} files")
    listener.upload_begins(len(files), size)
    sent = upload(client, release, missing, options.upload, listener.upload_advanced)
    listener.upload_ended()
    return sent, copied


def _report_dry_run(
    client: ReceiverClient,
    release: Release,
    device: Device,
    transport: Transport,
    sign: SignRelease,
    warnings: list[str],
    started: float,
) -> PushReport:
    status = client.call("status")
    known = _is_known(status, release)
    plan = client.plan(release, known=known, signature=sign(release, status["trust"]))
    return PushReport(
        device=device.name,
        address=transport.address,
        release=release.identity,
        previous=status["current"],
        changed=status["current"] != release.identity,
        dry_run=True,
        files=len(release.files),
        total_bytes=release.total_bytes,
        files_sent=len(plan.missing),
        bytes_sent=plan.upload_bytes,
        wire_bytes=plan.upload_bytes,
        channels=1,
        upload_s=0.0,
        health={},
        health_s=0.0,
        trust=plan.trust,
        warnings=warnings,
        seconds=round(time.monotonic() - started, 3),
    )


def _explain_health(failure: HealthCheckError, current: str | None, identity: str) -> HealthCheckError:
    if current == identity:
        stays = f"this release ({identity}) was already the running one; `edgeawq rollback` goes to the one before"
    elif current:
        stays = f"the device goes on with release {current}"
    else:
        stays = "nothing was switched on; there is no earlier release"
    details = f" The device said: {failure.remedy}" if failure.remedy else ""
    return HealthCheckError(f"{failure.what}; {stays}", remedy=f"look at the message, correct it, push again.{details}")
