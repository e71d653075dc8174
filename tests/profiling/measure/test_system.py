"""What Linux says about a machine, from fake trees."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeawq.profiling.measure import system
from edgeawq.profiling.schema import CacheFacts
from tests.profiling.measure import machines


def test_a_raspberry_pi_5(tmp_path: Path) -> None:
    root = machines.pi5(tmp_path)
    facts = system.describe_device("pi5", "neon_dotprod", root)
    assert facts.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts.memory_bytes == 8245908 * 1024
    assert facts.caches == (CacheFacts(1, 64 << 10, 1), CacheFacts(2, 512 << 10, 1), CacheFacts(3, 2 << 20, 4))
    assert facts.max_clock_hertz == 2.4e9
    assert facts.governor == "ondemand"
    assert not facts.virtual_machine
    assert system.read_temperature(root) == 61.25
    assert system.read_clock(root) == 2.4e9
    assert system.read_load(root) == 0.25
    assert system.available_memory(root) == 7_000_000 * 1024
    assert system.read_pi_throttled(root) == 0


def test_an_empty_machine_has_nothing_to_tell(tmp_path: Path) -> None:
    facts = system.describe_device("bare", "neon", tmp_path)
    assert facts.caches == () and facts.max_clock_hertz is None and facts.governor is None
    for read in (system.read_temperature, system.read_clock, system.read_load, system.read_pi_throttled):
        assert read(tmp_path) is None
    assert system.read_cpu_time(tmp_path) is None
    assert system.read_clock_cap(tmp_path) is None
    assert system.read_throttle_counts(tmp_path) == {}
    assert system.read_cooling(tmp_path) == []
    assert system.swap_used(tmp_path) == 0


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=80))
def test_nonsense_in_files_is_no_failure(tmp_path_factory, content: bytes) -> None:
    root = machines.pi5(tmp_path_factory.mktemp("pi"))
    for path in [path for path in root.rglob("*") if path.is_file()]:
        path.write_bytes(content)
    facts = system.describe_device("pi5", "neon", root)
    assert facts.model.isprintable()
    for read in (system.read_temperature, system.read_clock, system.read_clock_cap, system.read_load):
        read(root)
    for read_more in (system.read_cpu_time, system.read_pi_throttled, system.read_caches, system.swap_used):
        read_more(root)


def test_sensors_of_other_things_are_not_the_cpu_s(tmp_path: Path) -> None:
    root = machines.write(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/type": "iwlwifi",
            "sys/class/thermal/thermal_zone0/temp": 90_000,
            "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp",
            "sys/class/thermal/thermal_zone1/temp": 50_000,
            "sys/class/hwmon/hwmon0/name": "nvme",
            "sys/class/hwmon/hwmon0/temp1_input": 95_000,
            "sys/class/hwmon/hwmon1/name": "k10temp",
            "sys/class/hwmon/hwmon1/temp1_input": 55_000,
            "sys/class/hwmon/hwmon1/temp3_input": -273_150,
        },
    )
    assert system.read_temperature(root) == 55.0


def test_the_clock_s_limit_is_of_the_most_limited_cpu(tmp_path: Path) -> None:
    root = machines.pi5(tmp_path)
    machines.write(root, {f"{machines.CPU}/cpu2/cpufreq/scaling_max_freq": 1_500_000})
    assert system.read_clock_cap(root) == (1.5e9, 2.4e9)


@settings(deadline=None, max_examples=40)
@given(st.text())
def test_what_goes_into_a_document_is_one_printable_line(text: str) -> None:
    cleaned = system.clean(text)
    assert cleaned.isprintable() and len(cleaned) <= 200
