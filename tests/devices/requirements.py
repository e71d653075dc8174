"""What this machine needs to emulate devices, and what to do about what it lacks."""

from __future__ import annotations

import os
import platform
import shutil

from tests.devices.binfmt import QEMU
from tests.devices.errors import EmulationError

# Program → Debian package.
PROGRAMS = {
    QEMU: "qemu-user-static",
    "mmdebstrap": "mmdebstrap",
    "zstd": "zstd",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}


def find_obstacle() -> EmulationError | None:
    """Why no device can be emulated here; None when it can be tried."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return EmulationError(
            f"Raspberry Pis are emulated on Linux on x86-64; this is {platform.system()} on {platform.machine()}",
            remedy="use such a machine, or a real board",
        )
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if missing:
        return EmulationError(
            f"an emulated Raspberry Pi needs {', '.join(missing)}", remedy=f"apt-get install {' '.join(missing)}"
        )
    if os.geteuid() != 0:
        return EmulationError(
            "an emulated Raspberry Pi needs root, for mounts and namespaces", remedy="run the same command with sudo"
        )
    return None


def check_requirements() -> None:
    """Raise what stands in the way."""
    obstacle = find_obstacle()
    if obstacle is not None:
        raise obstacle
