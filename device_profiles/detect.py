"""Recognize a device from the texts that Linux offers about it: pure parsing, so that it works for remote devices.

Which device is which is data: the [detect] table of each profile.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

from device_profiles.profile import DetectionRule, DeviceProfile, list_profiles, load_profile
from device_profiles.target import Target
from edgeawq.errors import EdgeawqError, ProfileError

_V3_FLAGS = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm"})  # x86-64-v3 beyond v2
_V4_FLAGS = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})  # x86-64-v4 beyond v3
# Best first: instruction set, machine, flags of /proc/cpuinfo that its kernels need.
_ISA_FLAGS: tuple[tuple[str, str, frozenset[str]], ...] = (
    ("avx512vnni", "x86_64", _V3_FLAGS | _V4_FLAGS | {"avx512_vnni"}),
    ("avxvnni", "x86_64", _V3_FLAGS | {"avx_vnni"}),
    ("avx2", "x86_64", _V3_FLAGS),
    ("neon_i8mm", "aarch64", frozenset({"asimd", "asimddp", "i8mm"})),
    ("neon_dotprod", "aarch64", frozenset({"asimd", "asimddp"})),
    ("neon", "aarch64", frozenset({"asimd"})),
)
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_HOW = ("its instruction set", "its CPU part", "its device tree")


@dataclass(frozen=True)
class Detection:
    """What a device is. `note` says for people how the profile was found and what to mind; it may be empty."""

    machine: str  # "aarch64" or "x86_64"
    model: str  # for people: the board or the CPU
    cores: int
    memory_bytes: int
    isa: str  # the best instruction set that edgeawq has kernels for
    profile: str | None  # the profile to propose; None where none fits
    note: str


def detect_from_facts(cpuinfo_text: str, machine: str, meminfo_text: str, device_tree_model: str = "") -> Detection:
    """Recognize a device and propose a profile.

    cpuinfo_text: /proc/cpuinfo; machine: `uname -m`; meminfo_text: /proc/meminfo; device_tree_model:
    /proc/device-tree/model, empty where there is none. Raises ProfileError where no kernel fits the CPU.
    """
    board = device_tree_model.strip("\0 \n")
    model = board or _first(cpuinfo_text, "model name") or _first(cpuinfo_text, "Model") or machine
    known = _MACHINES.get(machine.strip().lower())
    if known is None:
        raise ProfileError(
            f"{model}: the machine {machine.strip()[:40]!r} has no kernels; there are aarch64 and x86_64",
            remedy="on a 32-bit system of a Raspberry Pi 3, 4 or 5 install the 64-bit one",
        )
    flags = _common_flags(cpuinfo_text)
    parts = set(re.findall(r"^CPU part\s*:\s*(0x[0-9a-f]+)", cpuinfo_text, re.MULTILINE | re.IGNORECASE))
    cores = max(1, len(re.findall(r"^processor\s*:", cpuinfo_text, re.MULTILINE)))
    memory = re.search(r"^MemTotal:\s*(\d{1,15}) kB", meminfo_text, re.MULTILINE)
    if memory is None:
        raise ProfileError(f"{model}: its /proc/meminfo has no MemTotal", remedy="edgeawq needs a Linux device")
    isa = choose_isa(known, flags, model)
    name, how = _choose_profile(known, isa, flags, {part.lower() for part in parts}, board, cores)
    return Detection(known, model, cores, int(memory.group(1)) * 1024, isa, name, _explain(name, how))


def choose_isa(machine: str, flags: frozenset[str], model: str) -> str:
    """The best instruction set with kernels for a CPU with these /proc/cpuinfo flags; ProfileError where none fits."""
    lacking: list[str] = []
    for isa, isa_machine, needed in _ISA_FLAGS:
        if isa_machine == machine:
            if needed <= flags:
                return isa
            lacking.append(f"{isa} (lacks {', '.join(sorted(needed - flags))})")
    raise ProfileError(
        f"{model}: no kernels for this CPU; it fits none of {'; '.join(lacking)}",
        remedy="x86-64 needs AVX2 and FMA (Intel since 2013, AMD since 2015), Arm a 64-bit CPU",
    )


def detect_host() -> DeviceProfile:
    """A profile named "host" for the machine this runs on; its speeds are not known and left out."""
    found = detect_from_facts(
        _read(Path("/proc/cpuinfo")),
        platform.machine(),
        _read(Path("/proc/meminfo")),
        _read(Path("/proc/device-tree/model"), optional=True),
    )
    cpu, features = _ask_llvm()
    return DeviceProfile(
        name="host",
        title=found.model,
        target=Target(f"{found.machine}-unknown-linux-gnu", cpu, features, found.isa),
        cores=found.cores,
        memory_bytes=found.memory_bytes,
        sources={"cores": "/proc/cpuinfo", "memory_bytes": "/proc/meminfo"},
    )


def find_profile(name: str) -> DeviceProfile:
    """The profile called `name`; "host" describes the machine this runs on."""
    return detect_host() if name == "host" else load_profile(name)


def _ask_llvm() -> tuple[str, tuple[str, ...]]:
    from llvmlite import binding

    # All features with their sign: a virtual machine often lacks some that the CPU's name implies.
    flags = binding.get_host_cpu_features()
    return binding.get_host_cpu_name(), tuple(sorted(f"{'+' if on else '-'}{name}" for name, on in flags.items()))


def _choose_profile(
    machine: str, isa: str, flags: frozenset[str], parts: set[str], board: str, cores: int
) -> tuple[str | None, int]:
    """The best profile whose code runs on such a CPU, and how it was found (an index of `_HOW`)."""
    order = [entry[0] for entry in _ISA_FLAGS]
    best: tuple[tuple[int, int, int, str], str | None] = ((-1, 0, 0, ""), None)
    for name in list_profiles():
        try:
            profile = load_profile(name)
        except EdgeawqError:
            continue  # a broken file of the user's own; whoever asks for it by name is told what is wrong with it
        rule = profile.detection
        if profile.target.machine != machine or not rule.flags or not set(rule.flags) <= flags:
            continue
        if profile.target.isa not in order or order.index(profile.target.isa) < order.index(isa):
            continue
        # Of equally good ones the one with the more capable instruction set, then with the nearest number of cores.
        rank = (_match(rule, parts, board), -order.index(profile.target.isa), -abs(profile.cores - cores), name)
        if rank > best[0]:
            best = (rank, name)
    return best[1], best[0][0]


def _match(rule: DetectionRule, parts: set[str], board: str) -> int:
    if any(part.lower() in board.lower() for part in rule.device_tree if part):
        return 2
    return 1 if parts & {part.lower() for part in rule.cpu_parts} else 0


def _explain(name: str | None, how: int) -> str:
    if name is None:
        return "no profile fits; write one (docs/contributing-device.md) or use --device host on the device itself"
    note = f"recognized by {_HOW[how]}"
    return note if how else f"{note}: the code of {name} runs on it, the profile's speeds may not be this device's"


def _common_flags(cpuinfo_text: str) -> frozenset[str]:
    """Flags that every core has: cores of one chip may differ."""
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo_text, re.MULTILINE)
    return frozenset.intersection(*(frozenset(line.split()) for line in lines)) if lines else frozenset()


def _first(text: str, key: str) -> str:
    match = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else ""


def _read(path: Path, *, optional: bool = False) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        if optional:
            return ""
        raise ProfileError(f"cannot read {path}: {error.strerror}", remedy="edgeawq needs Linux") from None
