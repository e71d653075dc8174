"""What must hold before the first byte is sent: machine, Python, memory and free space."""

from __future__ import annotations

import re

from device_profiles.target import Target
from edgeawq.deploy.device_facts import DeviceFacts, PythonFact
from edgeawq.errors import BundleError, DeviceUnfitError, ProfileError
from edgeawq.runtime.cpu import missing_flags, read_cpu_flags
from packager.manifest import KernelEntry, Manifest

# The rest of the memory is for the system, Python (about 80 MB with numpy and tokenizers) and the KV cache.
COMFORTABLE_SHARE = 0.7


MIN_GLIBC = (2, 28)  # the oldest C library for which the wheels in the site folder are built


def check_fit(facts: DeviceFacts, python: PythonFact, manifest: Manifest, *, where: str) -> list[str]:
    """Return warnings; DeviceUnfitError lists every reason why the bundle cannot run on the device.

    BundleError: its answer could not be checked there.
    """
    if manifest.file("golden") is None:
        raise BundleError(
            "the bundle has no golden answer, so nothing could tell on the device whether it works",
            remedy="pack the checkpoint again without --no-golden, on a computer whose CPU has kernels",
        )
    reasons: list[str] = []
    remedies: list[str] = []
    warnings: list[str] = []
    if facts.system != "Linux":
        reasons.append(f"the system is {facts.system or 'unknown'}, not Linux")
        remedies.append("use a device with Linux")
    packed_for = manifest.device.triple.partition("-")[0]
    if packed_for != facts.machine:
        reasons.append(f"the bundle is for {packed_for} (profile {manifest.device.profile!r}), it is {facts.machine}")
        remedies.append("set the right `profile` for this device, or pack with `--device PROFILE`")
    elif lacking := find_lacking_flags(facts, manifest):
        reasons.append(f"the bundle is for profile {manifest.device.profile!r}, and its CPU lacks {', '.join(lacking)}")
        remedies.append("set the right `profile` for this device, or pack with `--device PROFILE`")
    glibc = re.fullmatch(r"glibc-(\d{1,3})\.(\d{1,3}).*", python.libc)
    if glibc is None or (int(glibc.group(1)), int(glibc.group(2))) < MIN_GLIBC:
        reasons.append(f"its C library is {python.libc}, glibc 2.28 or later is needed")
        remedies.append("use a system with glibc, such as Debian 10, Ubuntu 20.04 or later")
    bundle_bytes = sum(entry.size for entry in manifest.files)
    if facts.memory_bytes:
        share = bundle_bytes / facts.memory_bytes
        sizes = f"the model has {_mb(bundle_bytes)}, the memory {_mb(facts.memory_bytes)}"
        if share > 1.0:
            reasons.append(sizes)
            remedies.append("use a smaller model")
        elif share > COMFORTABLE_SHARE:
            warnings.append(f"{sizes}: little is left for the context; a smaller model will run better")
        elif facts.available_memory_bytes and bundle_bytes > facts.available_memory_bytes:
            warnings.append(f"the model has {_mb(bundle_bytes)}, only {_mb(facts.available_memory_bytes)} are free now")
    if reasons:
        raise DeviceUnfitError(f"{where} cannot run this bundle: {'; '.join(reasons)}", remedy="; ".join(remedies))
    return warnings


def find_lacking_flags(facts: DeviceFacts, manifest: Manifest) -> tuple[str, ...]:
    """What the device's CPU lacks for the least demanding kernel of a bundle; empty when one of them runs there.

    Also empty when it is not known: the health check on the device finds out before anything is switched.
    """
    flags = read_cpu_flags(facts.cpuinfo)
    if not flags or not all(_has_known_isa(kernel) for kernel in manifest.kernels):
        return ()
    return min((missing_flags(kernel.isa, flags) for kernel in manifest.kernels), key=len, default=())


def _has_known_isa(kernel: KernelEntry) -> bool:
    try:
        Target(kernel.triple, kernel.cpu, kernel.features, kernel.isa)
    except ProfileError:
        return False
    return True


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
