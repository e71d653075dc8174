"""Tell the Linux kernel that aarch64 programs are run by qemu, as the qemu-user-static package does on most systems."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

from tests.devices.errors import EmulationError

BINFMT = Path("/proc/sys/fs/binfmt_misc")
ENTRY = "qemu-aarch64"
OWN_ENTRY = "edgeawq-aarch64"
QEMU = "qemu-aarch64-static"
# The first bytes of a 64-bit little-endian ELF program for machine 183, and which bits of them count.
MAGIC = "7f454c460201010000000000000000000200b700"
MASK = "ffffffffffffff00fffffffffffffffffeffffff"


def can_run_aarch64(entries: Path = BINFMT) -> bool:
    """Whether the kernel runs aarch64 programs, also those in a tree that has no qemu in it (flag F)."""
    if platform.machine() == "aarch64":
        # It would run them natively, with every instruction of this CPU: not what these devices are for.
        return False
    return any(is_usable(entries / name) for name in (ENTRY, OWN_ENTRY))


def is_usable(entry: Path) -> bool:
    """Whether a binfmt_misc entry is on and keeps its interpreter open."""
    try:
        text = entry.read_text()
    except OSError:
        return False
    lines = text.splitlines()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags:")), "")
    return "enabled" in lines and "F" in flags


def register_qemu() -> None:
    """Make sure that the kernel starts qemu for aarch64 programs; needs root. EmulationError where it cannot be."""
    if can_run_aarch64():
        return
    qemu = shutil.which(QEMU)
    if qemu is None:
        raise EmulationError(f"{QEMU} is not installed", remedy="apt-get install qemu-user-static")
    if not (BINFMT / "register").exists():
        mounted = subprocess.run(
            ["mount", "-t", "binfmt_misc", "none", str(BINFMT)], capture_output=True, text=True, check=False
        )
        if mounted.returncode:
            raise EmulationError(
                f"binfmt_misc cannot be mounted: {mounted.stderr.strip()}",
                remedy="the kernel needs CONFIG_BINFMT_MISC; a container needs --privileged",
            )
    if can_run_aarch64():  # registered before, in a file system that was only not mounted here
        return
    try:
        (BINFMT / "register").write_bytes(build_registration(OWN_ENTRY, qemu))
        (BINFMT / "status").write_text("1")
    except OSError as error:
        raise EmulationError(
            f"the kernel does not take {qemu} for aarch64 programs: {error.strerror}",
            remedy=f"run as root; `cat {BINFMT}/*` shows what is registered",
        ) from None
    if not can_run_aarch64():
        raise EmulationError(
            "aarch64 programs are registered, but not with the flag F, so they do not run in a tree of their own",
            remedy=f"echo -1 > {BINFMT / ENTRY}, then try again",
        )


def build_registration(name: str, interpreter: str) -> bytes:
    """The line for binfmt_misc/register. Flag F: the interpreter is opened now, not looked for in the tree."""

    def escape(digits: str) -> str:
        return "".join(f"\\x{digits[start : start + 2]}" for start in range(0, len(digits), 2))

    return f":{name}:M::{escape(MAGIC)}:{escape(MASK)}:{interpreter}:F".encode()
