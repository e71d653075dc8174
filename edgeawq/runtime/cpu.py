"""What this machine's CPU can do, read from /proc/cpuinfo and from LLVM."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from cpu_kernels.cpu_flags import PREFERENCE, REQUIRED_CPU_FLAGS
from edgeawq.errors import KernelError

# The device profile to pack with for an instruction set, to name in a remedy.
PROFILES = {
    "avx512vnni": "laptop-avx512",
    "avxvnni": "laptop-avx2",
    "avx2": "laptop-avx2",
    "neon_i8mm": "arm-i8mm",
    "neon_dotprod": "pi5",
    "neon": "pi4",
}


def read_cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The names after "flags" (x86) or "Features" (Arm) of the first processor in a /proc/cpuinfo text."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def own_cpu_flags() -> frozenset[str]:
    """This machine's flags; KernelError where the system does not tell."""
    try:
        return read_cpu_flags(Path("/proc/cpuinfo").read_text(errors="replace"))
    except OSError as error:
        raise KernelError(
            f"/proc/cpuinfo cannot be read: {error.strerror}", remedy="edgeawq runs on Linux with /proc mounted"
        ) from None


def missing_flags(isa: str, flags: frozenset[str]) -> tuple[str, ...]:
    """What a CPU with `flags` lacks for an instruction set."""
    return tuple(flag for flag in REQUIRED_CPU_FLAGS[isa] if flag not in flags)


def runnable_isas() -> tuple[str, ...]:
    """Instruction sets that this CPU can run, best first."""
    flags = own_cpu_flags()  # x86 and Arm have no flag in common that an instruction set asks for
    return tuple(isa for isa in PREFERENCE if not missing_flags(isa, flags))


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> str:
    """ "x86_64" or "aarch64"."""
    name = platform.machine()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name.lower(), name)
