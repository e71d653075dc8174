from __future__ import annotations

import dataclasses
import platform
import shutil
import sys
from pathlib import Path

import pytest

from edgeawq.deploy.device_facts import (
    DeviceFacts,
    PythonFact,
    choose_python,
    gather_facts,
    parse_facts,
    parse_free,
    parse_line,
    parse_memory,
    parse_number,
    parse_os_name,
    parse_pythons,
    propose_profile,
    split_sections,
)
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.local import LocalTransport
from edgeawq.errors import DeployError, DeviceUnfitError
from tests.deploy.sshd import SshServer

PI4 = """Welcome to my board!

@@edgeawq@@ system
Linux

@@edgeawq@@ machine
aarch64

@@edgeawq@@ host_name
raspberrypi

@@edgeawq@@ home
/home/pi
@@edgeawq@@ os_name
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"

@@edgeawq@@ model
Raspberry Pi 4 Model B Rev 1.4\0
@@edgeawq@@ n_cores
4

@@edgeawq@@ memory
MemTotal:        3884296 kB
MemFree:          200000 kB
MemAvailable:    3300120 kB

@@edgeawq@@ free
Filesystem     1024-blocks    Used Available Capacity Mounted on
/dev/root         29816916 4032388  24496232      15% /

@@edgeawq@@ cpuinfo
processor	: 0
Features	: fp asimd evtstrm crc32 cpuid
CPU implementer	: 0x41
CPU part	: 0xd08

@@edgeawq@@ pythons
/usr/bin/python3 3.11.2 64 aarch64 glibc-2.36
/usr/bin/python3 3.11.2 64 aarch64 glibc-2.36

@@edgeawq@@ end
"""


def pi4() -> DeviceFacts:
    return parse_facts(split_sections(PI4))


def test_reads_a_raspberry_pi() -> None:
    facts = pi4()
    assert facts == DeviceFacts(
        system="Linux",
        machine="aarch64",
        host_name="raspberrypi",
        home="/home/pi",
        os_name="Debian GNU/Linux 12 (bookworm)",
        model="Raspberry Pi 4 Model B Rev 1.4",
        n_cores=4,
        memory_bytes=3884296 * 1024,
        available_memory_bytes=3300120 * 1024,
        free_bytes=24496232 * 1024,
        cpuinfo=facts.cpuinfo,
        pythons=(PythonFact("/usr/bin/python3", (3, 11, 2), 64, "aarch64", "glibc-2.36"),),
    )
    assert "0xd08" in facts.cpuinfo and "cpuinfo" not in facts.to_json()
    assert propose_profile(facts).profile == "pi4"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("Filesystem 1024-blocks Used Available Capacity Mounted on\ntmpfs 10 4 6 40% /x", 6 * 1024),
        ("//nas/a share 100 50 50 50% /mnt/my disk", 50 * 1024),
        ("Filesystem 1K-blocks Used Available Use% Mounted on\noverlay 77 7 70 - /", 70 * 1024),
        ("df: /x: No such file or directory", 0),
        ("", 0),
    ],
)
def test_reads_df(text: str, size: int) -> None:
    assert parse_free(text) == size


def test_what_is_missing_is_zero_or_empty() -> None:
    assert parse_memory("MemTotal: 12 kB") == (12 * 1024, 0)
    assert parse_number("no cores") == 0 and parse_line("\n \0\n") == "" and parse_os_name("ID=x") == ""
    facts = parse_facts({})
    assert facts.memory_bytes == 0 and facts.pythons == ()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/usr/libexec/qemu-binfmt/qemu-aarch64-static", "qemu-aarch64"),
        ("/usr/bin/qemu-aarch64\n", "qemu-aarch64"),
        ("/usr/bin/readlink", ""),
        ("/home/qemu-fan/readlink", ""),
        ("", ""),
    ],
)
def test_knows_an_emulator(text: str, name: str) -> None:
    assert parse_facts({"emulator": text}).emulator == name


def test_reads_only_lines_that_describe_a_python() -> None:
    text = "bash: python3.10: not found\n/usr/bin/python3 3.9.2 32 armv7l glibc-2.31\n- 3.11.0 64 x y\n"
    assert [python.version for python in parse_pythons(text)] == [(3, 9, 2)]


def with_pythons(*pythons: tuple[str, tuple[int, int, int], int]) -> DeviceFacts:
    facts = tuple(PythonFact(path, version, bits, "aarch64", "glibc-2.36") for path, version, bits in pythons)
    return dataclasses.replace(pi4(), pythons=facts)


def test_takes_python3_if_it_is_new_enough_else_the_newest() -> None:
    default = with_pythons(("/usr/bin/python3", (3, 10, 1), 64), ("/usr/bin/python3.13", (3, 13, 0), 64))
    assert choose_python(default).path == "/usr/bin/python3"
    newer = with_pythons(
        ("/usr/bin/python3", (3, 9, 2), 64), ("/a/python3.11", (3, 11, 1), 64), ("/b/python3.12", (3, 12, 0), 64)
    )
    assert choose_python(newer).path == "/b/python3.12"


@pytest.mark.parametrize(
    ("pythons", "what", "remedy"),
    [
        ((), "has no python3", "install Python 3.10"),
        ((("/usr/bin/python3", (3, 9, 2), 64),), "/usr/bin/python3 3.9.2; 3.10 or later", "Raspberry Pi OS 12"),
        ((("/usr/bin/python3", (3, 11, 2), 32),), "32-bit", "64-bit operating system"),
    ],
)
def test_says_why_no_python_fits(pythons: tuple[tuple[str, tuple[int, int, int], int], ...], what: str, remedy: str):
    with pytest.raises(DeviceUnfitError) as caught:
        choose_python(with_pythons(*pythons))
    assert what in caught.value.what and remedy in caught.value.remedy and "raspberrypi" in caught.value.what


def test_gathers_facts_of_this_machine() -> None:
    device = Device(name="here", transport="local", root="/not/there/yet")
    facts = gather_facts(LocalTransport(), dataclasses.replace(device, python=sys.executable))
    assert facts.system == platform.system() and facts.machine == platform.machine()
    assert facts.n_cores >= 1 and facts.memory_bytes > facts.available_memory_bytes > 0 and facts.free_bytes > 0
    assert choose_python(facts, sys.executable).version == sys.version_info[:3]
    assert choose_python(facts).libc.startswith("glibc-")


@pytest.mark.parametrize("old", ["", "#!/bin/sh\necho /usr/bin/python3 3.9.2 64 x86_64 glibc-2.31\nexit 1\n"])
def test_this_machine_falls_back_to_the_python_that_runs_us(
    old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("sh", "uname", "cat", "df", "dirname", "nproc", "head", "grep"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    if old:
        (tmp_path / "python3").write_text(old)
        (tmp_path / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    device = Device(name="here", transport="local", root="/not/there/yet")
    assert choose_python(gather_facts(LocalTransport(), device)).path == sys.executable


@pytest.mark.server
def test_a_login_script_that_prints_is_no_trouble(server: SshServer) -> None:
    from edgeawq.deploy.connect import connect

    (server.home / ".bashrc").write_text("echo Welcome; echo '@@edgeawq@@'\n")
    with connect(server.device()) as transport:
        assert gather_facts(transport, server.device()).home == str(server.home)


@pytest.mark.server
def test_an_account_that_runs_no_commands_is_named(server: SshServer) -> None:
    from edgeawq.deploy.connect import connect

    server.stop()
    server.extra_config = "ForceCommand echo no entry"
    server.start()
    with connect(server.device()) as transport, pytest.raises(DeployError, match="no entry"):
        gather_facts(transport, server.device())
