"""What Linux says about a machine: facts that stay, and its state at a moment; below a root folder, for tests.

Nothing here fails on a strange machine: what a file does not tell, or is not there, is None.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from edgeawq.profiling.schema import CacheFacts, DeviceFacts

ROOT = Path("/")
MAX_FILE_BYTES = 1 << 20
MAX_ENTRIES = 4096
_CPU = re.compile(r"cpu\d+")
_SIZE_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
# Kinds of thermal zones and chips that are about the CPU or the whole chip.
_CPU_SENSORS = ("cpu", "soc", "pkg", "core", "k10temp", "zenpower", "bcm", "tj", "package")


@dataclass(frozen=True)
class CpuTime:
    """Ticks of all CPUs since the start of the machine."""

    busy: int
    stolen: int
    total: int


def read_text(root: Path, name: str) -> str | None:
    """A small file's text without surrounding blanks; None where it cannot be read."""
    try:
        with (root / name).open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode("utf-8", "replace").strip("\0 \n\t")
    except OSError:
        return None


def read_number(root: Path, name: str) -> int | None:
    """A small file's whole number; None where there is none."""
    text = read_text(root, name)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def list_entries(root: Path, folder: str, pattern: str) -> list[str]:
    """Paths, relative to the root, of a folder's entries that match; sorted, none where it cannot be read."""
    try:
        names = sorted(os.listdir(root / folder))[:MAX_ENTRIES]
    except OSError:
        return []
    return [f"{folder}/{name}" for name in names if re.fullmatch(pattern, name)]


def describe_device(name: str, isa: str, root: Path = ROOT) -> DeviceFacts:
    """The machine this runs on. Text from its files is cut to what a document may hold."""
    cpuinfo = read_text(root, "proc/cpuinfo") or ""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    board = read_text(root, "proc/device-tree/model") or (found.group(1) if found else platform.machine())
    policies = list_entries(root, "sys/devices/system/cpu", _CPU.pattern)
    clocks = [read_number(root, f"{cpu}/cpufreq/cpuinfo_max_freq") for cpu in policies]
    return DeviceFacts(
        name=clean(name),
        model=clean(board),
        machine=clean(platform.machine()),
        isa=isa,
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=(_read_meminfo(root, "MemTotal") or 0),
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        caches=read_caches(root),
        max_clock_hertz=max((1000.0 * clock for clock in clocks if clock), default=None),
        governor=clean(read_text(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "") or None,
        kernel=clean(platform.release()),
        virtual_machine=bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE)),
    )


def find_emulator(root: Path = ROOT) -> str | None:
    """The name of the program that interprets this process's instructions, such as qemu-aarch64; None for a real CPU.

    qemu shows its programs themselves at /proc/self/exe, but not by this other way to the same link.
    """
    try:
        name = Path(os.readlink(root / "proc/thread-self/exe")).name
    except OSError:
        return None
    return clean(name).removesuffix("-static") if name.startswith("qemu-") else None


def clean(text: str) -> str:
    """One printable line of at most 200 characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:200].strip()


def available_memory(root: Path = ROOT) -> int:
    """Bytes that programs may still take."""
    return _read_meminfo(root, "MemAvailable") or 0


def swap_used(root: Path = ROOT) -> int:
    """Bytes of memory that are swapped out."""
    return max(0, (_read_meminfo(root, "SwapTotal") or 0) - (_read_meminfo(root, "SwapFree") or 0))


def read_caches(root: Path = ROOT) -> tuple[CacheFacts, ...]:
    """Data and unified caches of the first CPU, level 1 first; none where the system does not tell."""
    found: dict[int, CacheFacts] = {}
    for folder in list_entries(root, "sys/devices/system/cpu/cpu0/cache", r"index\d+"):
        level, size = read_number(root, f"{folder}/level"), _read_size(root, f"{folder}/size")
        if level and 1 <= level <= 9 and size and read_text(root, f"{folder}/type") in ("Data", "Unified"):
            shared = max(1, min(_count_cpus(read_text(root, f"{folder}/shared_cpu_list") or "0"), MAX_ENTRIES))
            found[level] = CacheFacts(level, size, shared)
    return tuple(found[level] for level in sorted(found))


def read_cpu_time(root: Path = ROOT) -> CpuTime | None:
    """The first line of /proc/stat."""
    text = read_text(root, "proc/stat") or ""
    match = re.match(r"cpu((?:\s+\d+){8})", text)
    if not match:
        return None
    user, nice, system, idle, waiting, interrupts, soft, stolen = map(int, match.group(1).split())
    busy = user + nice + system + interrupts + soft
    return CpuTime(busy, stolen, busy + idle + waiting + stolen)


def read_clock(root: Path = ROOT) -> float | None:
    """Hertz of the slowest CPU that tells, at this moment."""
    clocks = [
        read_number(root, f"{cpu}/cpufreq/scaling_cur_freq")
        for cpu in list_entries(root, "sys/devices/system/cpu", _CPU.pattern)
    ]
    return min((1000.0 * clock for clock in clocks if clock), default=None)


def read_clock_cap(root: Path = ROOT) -> tuple[float, float] | None:
    """(highest clock that is allowed now, highest of the hardware) of the most limited CPU, in hertz."""
    caps = []
    for cpu in list_entries(root, "sys/devices/system/cpu", _CPU.pattern):
        allowed = read_number(root, f"{cpu}/cpufreq/scaling_max_freq")
        possible = read_number(root, f"{cpu}/cpufreq/cpuinfo_max_freq")
        if allowed and possible:
            caps.append((1000.0 * allowed, 1000.0 * possible))
    return min(caps, key=lambda cap: cap[0] / cap[1], default=None)


def read_temperature(root: Path = ROOT) -> float | None:
    """Celsius of the hottest sensor of the CPU or its chip; of any thermal zone where none is named so."""
    named: list[float] = []
    others: list[float] = []
    for zone in list_entries(root, "sys/class/thermal", r"thermal_zone\d+"):
        value = read_number(root, f"{zone}/temp")
        if value is not None and -50_000 < value < 250_000:
            kind = (read_text(root, f"{zone}/type") or "").lower()
            (named if any(part in kind for part in _CPU_SENSORS) else others).append(value / 1000)
    for chip in list_entries(root, "sys/class/hwmon", r"hwmon\d+"):
        if any(part in (read_text(root, f"{chip}/name") or "").lower() for part in _CPU_SENSORS):
            for sensor in list_entries(root, chip, r"temp\d+_input"):
                value = read_number(root, sensor)
                if value is not None and -50_000 < value < 250_000:
                    named.append(value / 1000)
    return max(named or others, default=None)


def read_load(root: Path = ROOT) -> float | None:
    """The load average of a minute."""
    match = re.match(r"(\d+\.\d+) ", read_text(root, "proc/loadavg") or "")
    return float(match.group(1)) if match else None


def read_pi_throttled(root: Path = ROOT) -> int | None:
    """The bits of a Raspberry Pi's firmware, as `vcgencmd get_throttled` prints them; None elsewhere.

    Where the system shows only the alarm of a low voltage, that is the first bit.
    """
    for chip in list_entries(root, "sys/devices/platform", r"soc(@\w+)?"):  # an address is in it since the Pi 5
        for firmware in list_entries(root, chip, r".*firmware"):
            try:
                return int(read_text(root, f"{firmware}/get_throttled") or "", 16)
            except ValueError:
                continue
    for chip in list_entries(root, "sys/class/hwmon", r"hwmon\d+"):
        if read_text(root, f"{chip}/name") == "rpi_volt":
            return read_number(root, f"{chip}/in0_lcrit_alarm")
    return None


def read_throttle_counts(root: Path = ROOT) -> dict[str, int]:
    """Counters that rise while the clock is lowered for heat or current: x86 CPUs, and Jetson's over-current alarms."""
    names = []
    for cpu in list_entries(root, "sys/devices/system/cpu", _CPU.pattern):
        names += list_entries(root, f"{cpu}/thermal_throttle", r"(?:core|package)_throttle_count")
    for chip in list_entries(root, "sys/class/hwmon", r"hwmon\d+"):
        names += list_entries(root, chip, r"oc\d+_event_cnt")
    counts = {name: read_number(root, name) for name in names}
    return {name: count for name, count in counts.items() if count is not None}


def read_cooling(root: Path = ROOT) -> list[str]:
    """Names of cooling devices that hold the CPU's clock down at this moment."""
    active = []
    for device in list_entries(root, "sys/class/thermal", r"cooling_device\d+"):
        kind = read_text(root, f"{device}/type") or ""
        if "cpu" in kind.lower() and (read_number(root, f"{device}/cur_state") or 0) > 0:
            active.append(clean(kind))
    return active


def _read_meminfo(root: Path, key: str) -> int | None:
    match = re.search(rf"^{key}:\s+(\d{{1,15}}) kB", read_text(root, "proc/meminfo") or "", re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def _read_size(root: Path, name: str) -> int | None:
    match = re.fullmatch(r"(\d{1,9})([KMG])", read_text(root, name) or "")
    return int(match.group(1)) * _SIZE_UNITS[match.group(2)] if match else None


def _count_cpus(text: str) -> int:
    """CPUs of a list such as "0-3,8"."""
    count = 0
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (not last or last.isdigit()):
            count += (int(last) if last else int(first)) - int(first) + 1
    return count
