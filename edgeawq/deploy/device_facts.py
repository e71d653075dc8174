"""Facts about a device: each one a shell command and a pure function that reads what the command printed."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from device_profiles.detect import Detection, detect_from_facts
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.transport import Transport, quote_words
from edgeawq.errors import DeployError, DeviceUnfitError

MIN_PYTHON = (3, 10)
SEPARATOR = "@@edgeawq@@"
OTHER_PYTHONS = " ".join(f"python3.{minor}" for minor in range(10, 20))

# One line that every Python 3 can run; it ends with 0 when this one will do.
_DESCRIBE_PYTHON = (
    "import sys,platform,struct;"
    "print('%s %d.%d.%d %d %s %s' % (sys.executable or '-', sys.version_info[0], sys.version_info[1],"
    " sys.version_info[2], struct.calcsize('P') * 8, platform.machine(), '-'.join(platform.libc_ver()) or '-'));"
    "sys.exit(sys.version_info < (3, 10) or struct.calcsize('P') < 8)"
)


@dataclass(frozen=True)
class PythonFact:
    """One Python interpreter on the device."""

    path: str
    version: tuple[int, int, int]
    bits: int  # 32 or 64
    machine: str
    libc: str  # "glibc-2.36"; "-" when it is not known (musl)

    @property
    def series(self) -> str:
        """Major and minor version, as wheels name it: "3.11"."""
        return f"{self.version[0]}.{self.version[1]}"

    @property
    def version_text(self) -> str:
        """The whole version: "3.11.2"."""
        return ".".join(str(number) for number in self.version)


@dataclass(frozen=True)
class DeviceFacts:
    """What a device is. Sizes are bytes; a number that could not be found out is 0, a text empty."""

    system: str  # "Linux"
    machine: str  # "aarch64"
    host_name: str
    home: str
    os_name: str  # "Debian GNU/Linux 12 (bookworm)"
    model: str  # from the device tree or DMI: "Raspberry Pi 4 Model B Rev 1.4"
    n_cores: int
    memory_bytes: int
    available_memory_bytes: int
    free_bytes: int  # at the folder that holds the releases
    cpuinfo: str
    pythons: tuple[PythonFact, ...]
    emulator: str = ""  # what interprets its instructions, such as "qemu-aarch64"; empty for a real CPU

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain data, without the long cpuinfo."""
        return {key: value for key, value in asdict(self).items() if key != "cpuinfo"}


def parse_number(text: str) -> int:
    """Return the first whole number in `text`; 0 when there is none."""
    found = re.search(r"\d{1,18}", text)
    return int(found.group()) if found else 0


def parse_memory(text: str) -> tuple[int, int]:
    """Return (total, available) bytes from /proc/meminfo."""
    values = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d{1,15}) kB", text, re.MULTILINE))
    return int(values.get("MemTotal", 0)) * 1024, int(values.get("MemAvailable", 0)) * 1024


def parse_free(text: str) -> int:
    """Return the free bytes from the last line of `df -Pk`."""
    for line in reversed(text.splitlines()):
        columns = line.split()
        # File system names may have spaces, so count from the percentage.
        for index, column in enumerate(columns):
            if re.fullmatch(r"\d{1,3}%|-", column) and index >= 1 and columns[index - 1].isdigit():
                return int(columns[index - 1]) * 1024
    return 0


def parse_pythons(text: str) -> tuple[PythonFact, ...]:
    """Return the interpreters that have described themselves, each once, in the order given."""
    found: dict[str, PythonFact] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(/.+?) (\d{1,3})\.(\d{1,3})\.(\d{1,3}) (32|64) (\S+) (\S+)", line.strip())
        if match:
            path, major, minor, patch, bits, machine, libc = match.groups()
            fact = PythonFact(path, (int(major), int(minor), int(patch)), int(bits), machine, libc)
            found.setdefault(path, fact)
    return tuple(found.values())


def parse_emulator(text: str) -> str:
    """Return the emulator's name from the path of the program that runs a command; empty when it is none."""
    name = text.rpartition("/")[2]
    return name.removesuffix("-static") if name.startswith("qemu-") else ""


def parse_os_name(text: str) -> str:
    """Return PRETTY_NAME of /etc/os-release."""
    match = re.search(r'^PRETTY_NAME="?([^"\n]{1,200})"?$', text, re.MULTILINE)
    return match.group(1) if match else ""


def parse_line(text: str) -> str:
    """Return the first line that says something, without the NUL bytes of the device tree."""
    lines = [line.strip() for line in text.replace("\0", "\n").splitlines() if line.strip()]
    return lines[0][:200] if lines else ""


def build_commands(device: Device) -> dict[str, str]:
    """Return fact name → /bin/sh command, with the folder and the Python that the inventory names."""
    root, python = device.root, device.python
    # This machine surely has the Python that runs this very program.
    last = shlex.quote(sys.executable) if device.is_local else ""
    # Starting Python takes a third of a second on a small device: the others are asked only if python3 will not do.
    others = "true" if python else f"for name in {OTHER_PYTHONS} {last}; do describe $name; done"
    describe = f'describe() {{ "$1" -I -c {shlex.quote(_DESCRIBE_PYTHON)} 2>/dev/null; }}'
    pythons = f"{describe}; describe {quote_words([python or 'python3'])} || {others}"
    return {
        "system": "uname -s",
        "machine": "uname -m",
        "host_name": "uname -n",
        "home": 'printf "%s" "$HOME"',
        "os_name": "cat /etc/os-release",
        "model": "cat /proc/device-tree/model || cat /sys/firmware/devicetree/base/model || "
        "cat /sys/class/dmi/id/product_name",
        "n_cores": "nproc || grep -c ^processor /proc/cpuinfo",
        "memory": "cat /proc/meminfo",
        # The folder is not there before the first push: ask for the nearest one above it that is.
        "free": f'd={quote_words([root])}; while [ ! -d "$d" ]; do d=$(dirname "$d"); done; df -Pk "$d"',
        "cpuinfo": "head -c 65536 /proc/cpuinfo",
        "pythons": pythons,
        # qemu shows its programs themselves at /proc/self/exe, but not by this other way to the same link.
        "emulator": "readlink /proc/thread-self/exe",
    }


def gather_facts(transport: Transport, device: Device) -> DeviceFacts:
    """Find out what the device is, with one command. DeployError when it has no /bin/sh that answers."""
    commands = build_commands(device)
    script = "\n".join(f"echo; echo {SEPARATOR} {name}; ({command}) 2>/dev/null" for name, command in commands.items())
    result = transport.run(f"{script}\necho; echo {SEPARATOR} end")
    sections = split_sections(result.stdout.decode("utf-8", "replace"))
    if "end" not in sections:
        output = (result.stdout + result.stderr).decode("utf-8", "replace").strip()
        raise DeployError(
            f"{transport.address} does not run commands as expected (exit code {result.exit_code}): {output[-300:]!r}",
            remedy="the login shell must run commands given over SSH; is the account restricted?",
        )
    return parse_facts(sections)


def split_sections(text: str) -> dict[str, str]:
    """Split the output of the facts script into name → output; text before the first section is a login banner."""
    sections: dict[str, str] = {}
    name = ""
    lines: list[str] = []
    for line in text.split("\n"):
        if line.startswith(f"{SEPARATOR} "):
            if name:
                sections[name] = "\n".join(lines)
            name, lines = line[len(SEPARATOR) + 1 :].strip(), []
        else:
            lines.append(line)
    if name:
        sections[name] = "\n".join(lines)
    return sections


def parse_facts(sections: Mapping[str, str]) -> DeviceFacts:
    """Return the facts in the outputs of `build_commands`."""
    total, available = parse_memory(sections.get("memory", ""))

    def line(name: str) -> str:
        return parse_line(sections.get(name, ""))

    return DeviceFacts(
        system=line("system"),
        machine=line("machine"),
        host_name=line("host_name"),
        home=line("home"),
        os_name=parse_os_name(sections.get("os_name", "")),
        model=line("model"),
        n_cores=parse_number(sections.get("n_cores", "")),
        memory_bytes=total,
        available_memory_bytes=available,
        free_bytes=parse_free(sections.get("free", "")),
        cpuinfo=sections.get("cpuinfo", ""),
        pythons=parse_pythons(sections.get("pythons", "")),
        emulator=parse_emulator(line("emulator")),
    )


def choose_python(facts: DeviceFacts, wanted: str = "") -> PythonFact:
    """Return the interpreter to use: `python3` if it is new enough, else the newest. DeviceUnfitError otherwise.

    `wanted` is the inventory's setting, for the message only: facts then hold that interpreter alone.
    """
    where = f"{facts.host_name or 'the device'} ({facts.os_name or facts.system or 'unknown system'})"
    minimum = ".".join(str(number) for number in MIN_PYTHON)
    if not facts.pythons:
        raise DeviceUnfitError(
            f"{where} has no {wanted or 'python3'}",
            remedy=f"install Python {minimum} or later there, for example `sudo apt install python3`",
        )
    fit = [python for python in facts.pythons if python.version[:2] >= MIN_PYTHON]
    if not fit:
        found = ", ".join(f"{python.path} {python.version_text}" for python in facts.pythons)
        raise DeviceUnfitError(
            f"Python on {where} is too old: {found}; {minimum} or later is needed",
            remedy=f"install a newer Python there (Raspberry Pi OS 12 has 3.11) and, if it is not called python3, "
            f'set python = "/path/to/python{minimum}" for this device in the inventory',
        )
    wide = [python for python in fit if python.bits == 64]
    if not wide:
        raise DeviceUnfitError(
            f"Python on {where} is a 32-bit program ({fit[0].path}); the kernels are 64-bit code",
            remedy="install a 64-bit operating system on the device",
        )
    if wide[0] is facts.pythons[0]:
        return wide[0]
    return max(wide, key=lambda python: python.version)


def propose_profile(facts: DeviceFacts) -> Detection:
    """Return the device profile that fits these facts; ProfileError where no kernel fits the CPU."""
    meminfo = f"MemTotal: {facts.memory_bytes // 1024} kB"
    return detect_from_facts(facts.cpuinfo, facts.machine, meminfo, facts.model)
