"""What the receiver refuses, turned into the errors of edgeawq with a remedy."""

from __future__ import annotations

from typing import Any

from edgeawq.deploy.transport import RemoteProcess
from edgeawq.errors import (
    BundleError,
    DeployError,
    DeviceLockedError,
    DeviceUnfitError,
    EdgeawqError,
    HealthCheckError,
    TransferError,
    UntrustedReleaseError,
)

_TRUST_REMEDIES = {
    "unsigned": "sign it: push from a computer that has one of the keys that `edgeawq status NAME` shows",
    "untrusted": "push with a key that the device trusts, or let one of those add yours: `edgeawq key rotate`",
    "expired": "check the device's clock, or sign anew by pushing from a computer that has the key",
    "downgrade": "push the newest release, or add --allow-downgrade if the older one is really wanted",
}


def explain_answer(answer: dict[str, Any], address: str) -> EdgeawqError:
    """Return the error that an answer with "ok": false stands for."""
    code = str(answer.get("code", ""))
    what = f"{address}: {str(answer.get('what', 'refused'))[:1000]}"
    if code == "locked":
        return _explain_lock(answer.get("lock"), address)
    if code == "lock-lost":
        return DeviceLockedError(what, remedy="find out who is pushing, then push again")
    if code == "no-space":
        return DeviceUnfitError(
            what + _sizes(answer),
            remedy="remove old releases with `edgeawq gc NAME --keep 2`, or point `root` in the inventory to a larger "
            "disk; the running release is as it was",
        )
    if code == "unfit":
        return DeviceUnfitError(what, remedy="push again: bundle and site folder are then made for this device")
    if code in ("read-only", "permission"):
        return DeviceUnfitError(
            what, remedy="check the mount and the owner of the folder, or set another `root` in the inventory"
        )
    if code == "no-links":
        return DeviceUnfitError(what, remedy="set `root` in the inventory to a folder on ext4, XFS, Btrfs or F2FS")
    if code == "hash":
        return TransferError(what, remedy="push again; if it happens again, the bundle here is damaged: pack it anew")
    if code == "health":
        return HealthCheckError(what, remedy=str(answer.get("stderr", ""))[-1500:])
    if code == "manifest":
        return BundleError(what, remedy="pack the bundle again with the same version of edgeawq that pushes it")
    if code == "damaged":
        return TransferError(what, remedy="push again with --verify, which replaces what is damaged")
    if code in ("unsigned", "untrusted", "expired", "downgrade"):
        return UntrustedReleaseError(what, remedy=str(answer.get("remedy", "")) or _TRUST_REMEDIES[code])
    if code == "no-release":
        return DeployError(what, remedy="`edgeawq history NAME` lists the releases that are there")
    return DeployError(what, remedy=str(answer.get("remedy", "")))


def explain_no_greeting(process: RemoteProcess, address: str, python: str, noise: bytes) -> EdgeawqError:
    """Return the error for a receiver that has ended, or said something else, instead of its greeting."""
    code = process.wait()
    tail = process.stderr_tail()
    if code == 97:
        return DeviceUnfitError(
            f"{address}: {python} is older than Python 3.10", remedy="install a newer Python on the device"
        )
    if code == 127:
        return DeviceUnfitError(f"{address}: there is no {python}", remedy="install Python 3.10 or later there")
    if code < 0:
        return TransferError(f"the connection to {address} was lost", remedy="run the command again")
    said = (tail or noise.decode("utf-8", "replace")).strip()[-500:]
    return DeployError(f"{address}: the receiver did not start (exit code {code}): {said!r}")


def describe_age(seconds: float) -> str:
    """Return a duration in the largest unit that fits: "42 s", "5 min", "3 h", "2 days"."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def _explain_lock(lock: Any, address: str) -> EdgeawqError:
    lock = lock if isinstance(lock, dict) else {}
    age = lock.get("age_s")
    since = f" for {describe_age(age)}" if isinstance(age, (int, float)) else ""
    return DeviceLockedError(
        f"{address}: the device is locked by {lock.get('owner', 'someone')}{since}",
        remedy="wait until that push is done; if nobody is pushing any more, use --break-lock",
    )


def _sizes(answer: dict[str, Any]) -> str:
    need, free = answer.get("need"), answer.get("free")
    if isinstance(need, int) and isinstance(free, int):
        return f" ({need / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free)"
    return ""
