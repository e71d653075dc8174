from __future__ import annotations

import platform
from pathlib import Path

import pytest

from cpu_kernels.cpu_flags import PREFERENCE, REQUIRED_CPU_FLAGS
from device_profiles.detect import _ISA_FLAGS, choose_isa, detect_from_facts, detect_host, find_profile
from device_profiles.profile import load_profile
from edgeawq.errors import ProfileError

MEMINFO = "MemTotal:        3884360 kB\nMemFree:         1000000 kB\n"
A72_FLAGS = "fp asimd evtstrm crc32 cpuid"
A76_FLAGS = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
A78_FLAGS = A76_FLAGS + " uscat ilrcpc flagm paca pacg"
# Cortex-A720 (CIX P1) without what no kernel asks for
A720_FLAGS = A78_FLAGS + " sve sve2 svei8mm i8mm bf16 bti"
V3 = "fpu sse sse2 ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt avx f16c abm bmi1 avx2 bmi2"
V4 = V3 + " avx512f avx512dq avx512cd avx512bw avx512vl"


def arm_cpuinfo(part: str, flags: str, cores: int, tail: str = "") -> str:
    core = (
        "processor\t: {}\nBogoMIPS\t: 108.00\nFeatures\t: {}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        "CPU variant\t: 0x0\nCPU part\t: {}\nCPU revision\t: 3\n\n"
    )
    return "".join(core.format(i, flags, part) for i in range(cores)) + tail


def x86_cpuinfo(flags: str, cores: int = 4, model: str = "Example CPU @ 2.60GHz") -> str:
    core = "processor\t: {}\nvendor_id\t: GenuineIntel\nmodel name\t: {}\nflags\t\t: {}\nbugs\t\t: spectre_v1\n\n"
    return "".join(core.format(i, model, flags) for i in range(cores))


PI4_TAIL = "Hardware\t: BCM2835\nRevision\t: c03111\nSerial\t\t: 0\nModel\t\t: Raspberry Pi 4 Model B Rev 1.1\n"

PI4 = arm_cpuinfo("0xd08", A72_FLAGS, 4)
PI5 = arm_cpuinfo("0xd0b", A76_FLAGS, 4)

# what it is → /proc/cpuinfo, device tree, expected profile
CASES = {
    "pi4 by device tree": (PI4, "Raspberry Pi 4 Model B Rev 1.5\0", "pi4"),
    "pi4 by cpu part": (PI4 + PI4_TAIL, "", "pi4"),
    "compute module 4": (PI4, "Raspberry Pi Compute Module 4 Rev 1.0", "pi4"),
    "pi5 by device tree": (PI5, "Raspberry Pi 5 Model B Rev 1.0\0", "pi5"),
    "pi5 by cpu part": (PI5, "", "pi5"),
    "agx": (arm_cpuinfo("0xd42", A78_FLAGS, 12), "NVIDIA Jetson AGX Orin Developer Kit", "orin-agx"),
    "agx with 8 cores": (arm_cpuinfo("0xd42", A78_FLAGS, 8), "Jetson AGX Orin", "orin-agx"),
    "nano": (arm_cpuinfo("0xd42", A78_FLAGS, 6), "NVIDIA Jetson Orin Nano Developer Kit Super", "orin-nano"),
    "orin by 12 cores": (arm_cpuinfo("0xd42", A78_FLAGS, 12), "", "orin-agx"),
    "orin by 6 cores": (arm_cpuinfo("0xd42", A78_FLAGS, 6), "", "orin-nano"),
    "pi3 runs the code of pi4": (arm_cpuinfo("0xd03", A72_FLAGS, 4), "Raspberry Pi 3 Model B", "pi4"),
    "orion o6": (arm_cpuinfo("0xd81", A720_FLAGS, 12), "Radxa Orion O6", "arm-i8mm"),
    "graviton3": (arm_cpuinfo("0xd40", A720_FLAGS, 64), "", "arm-i8mm"),
    "haswell": (x86_cpuinfo(V3), "", "laptop-avx2"),
    "ice lake": (x86_cpuinfo(V4 + " avx512_vnni"), "", "laptop-avx512"),
    "alder lake": (x86_cpuinfo(V3 + " avx_vnni"), "", "laptop-avx2"),
    "skylake-x has no VNNI": (x86_cpuinfo(V4), "", "laptop-avx2"),
}


@pytest.mark.parametrize("case", CASES)
def test_devices_are_recognized(case: str) -> None:
    cpuinfo, board, name = CASES[case]
    target = load_profile(name).target
    found = detect_from_facts(cpuinfo, target.machine, MEMINFO, board)
    assert (found.profile, found.machine) == (name, target.machine)
    assert found.isa == ("avxvnni" if case == "alder lake" else target.isa)
    assert found.memory_bytes == 3884360 * 1024
    assert found.cores == cpuinfo.count("processor")


def test_the_board_is_named_without_its_zero_byte() -> None:
    found = detect_from_facts(
        arm_cpuinfo("0xd08", A72_FLAGS, 4), "aarch64", MEMINFO, "Raspberry Pi 4 Model B Rev 1.5\0"
    )
    assert found.model == "Raspberry Pi 4 Model B Rev 1.5"
    assert found.note == "recognized by its device tree"
    assert detect_from_facts(x86_cpuinfo(V3), "x86_64", MEMINFO).model == "Example CPU @ 2.60GHz"


def test_a_foreign_cpu_is_told_that_the_figures_are_not_its_own() -> None:
    found = detect_from_facts(arm_cpuinfo("0xd03", A72_FLAGS, 4), "aarch64", MEMINFO, "")
    assert "may not be this device's" in found.note


def test_a_board_whose_cpu_lacks_what_the_profile_uses_gets_another_one() -> None:
    found = detect_from_facts(arm_cpuinfo("0xd0b", A72_FLAGS, 4), "aarch64", MEMINFO, "Raspberry Pi 5 Model B")
    assert (found.profile, found.isa) == ("pi4", "neon")


def test_flags_must_be_those_of_every_core() -> None:
    cpuinfo = arm_cpuinfo("0xd0b", A76_FLAGS, 2) + arm_cpuinfo("0xd03", A72_FLAGS, 2)
    assert detect_from_facts(cpuinfo, "aarch64", MEMINFO).isa == "neon"


def test_no_profile_is_proposed_where_its_code_would_not_run() -> None:
    found = detect_from_facts(arm_cpuinfo("0xd03", "fp asimd evtstrm", 4), "aarch64", MEMINFO)
    assert found.profile is None
    assert found.isa == "neon"
    assert "no profile fits" in found.note


def test_own_profiles_take_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "edgeawq" / "profiles"
    folder.mkdir(parents=True)
    text = (Path(__file__).parents[2] / "device_profiles" / "data" / "pi4.toml").read_text()
    (folder / "rock.toml").write_text(text.replace('"Raspberry Pi 4"', '"Rock 4"'))
    (folder / "broken.toml").write_text("title = ")
    assert detect_from_facts(arm_cpuinfo("0xd08", A72_FLAGS, 4), "aarch64", MEMINFO, "Radxa ROCK 4").profile == "rock"


@pytest.mark.parametrize("machine", ["armv7l", "i686", "riscv64", ""])
def test_machines_without_kernels_are_refused(machine: str) -> None:
    with pytest.raises(ProfileError) as caught:
        detect_from_facts(arm_cpuinfo("0xd08", "half thumb neon", 4), machine, MEMINFO, "Raspberry Pi 4 Model B")
    assert "64-bit" in caught.value.remedy
    assert "Raspberry Pi 4" in caught.value.what


def test_an_old_cpu_is_told_what_it_lacks() -> None:
    with pytest.raises(ProfileError) as caught:
        detect_from_facts(x86_cpuinfo("fpu sse sse2 avx", model="Old CPU"), "x86_64", MEMINFO)
    assert "Old CPU" in caught.value.what
    assert "avx2" in caught.value.what
    assert "fma" in caught.value.what


@pytest.mark.parametrize("cpuinfo", ["", "processor\t: 0\n", "\0\0\0"])
def test_an_empty_cpuinfo_is_an_error_not_a_guess(cpuinfo: str) -> None:
    with pytest.raises(ProfileError, match="no kernels for this CPU"):
        detect_from_facts(cpuinfo, "x86_64", MEMINFO)


def test_a_device_without_meminfo_is_refused() -> None:
    with pytest.raises(ProfileError, match="MemTotal"):
        detect_from_facts(x86_cpuinfo(V3), "x86_64", "")


def test_a_chosen_instruction_set_has_every_flag_that_its_kernels_need() -> None:
    assert {isa for isa, _, _ in _ISA_FLAGS} == set(REQUIRED_CPU_FLAGS)
    assert [isa for isa, _, _ in _ISA_FLAGS] == list(PREFERENCE)
    for isa, _, flags in _ISA_FLAGS:
        assert set(REQUIRED_CPU_FLAGS[isa]) <= flags


def test_the_best_instruction_set_wins() -> None:
    assert choose_isa("x86_64", frozenset((V3 + " avx_vnni").split()), "x") == "avxvnni"
    assert choose_isa("x86_64", frozenset((V4 + " avx512_vnni").split()), "x") == "avx512vnni"
    assert choose_isa("aarch64", frozenset(A76_FLAGS.split()), "x") == "neon_dotprod"
    assert choose_isa("aarch64", frozenset(A720_FLAGS.split()), "x") == "neon_i8mm"


def test_this_machine() -> None:
    host = detect_host()
    assert host.name == "host"
    assert host.target.machine == platform.machine()
    assert host.cores >= 1
    assert host.memory_bytes > 100 << 20
    assert host.bandwidth_bytes_per_s is None
    assert all(feature[0] in "+-" for feature in host.target.features)
    assert find_profile("host") == host
    assert find_profile("pi4").name == "pi4"
