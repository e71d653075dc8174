"""Throttling, other programs and weak power supplies are noted with their evidence, from fake trees."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeawq.profiling.measure.conditions import Watch
from tests.profiling.measure import machines


class Own:
    """CPU seconds of our own."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def make_watch(root: Path, own: Own | None = None) -> Watch:
    return Watch(root, cpu_seconds=own or Own(), ticks_per_s=100)


def kinds(watch: Watch) -> list[str]:
    return [note.kind for note in watch.notes]


def test_a_quiet_machine_needs_no_note(tmp_path: Path) -> None:
    root = machines.pi5(tmp_path)
    own = Own()
    watch = make_watch(root, own)
    machines.write(root, {"proc/stat": machines.stat_line(1400, 9000)})
    own.seconds = 4.0
    sample = watch.sample("memory")
    assert sample.other_busy_share == 0.0 and sample.stolen_share == 0.0
    assert sample.temperature_celsius == 61.25 and sample.clock_hertz == 2.4e9
    assert watch.notes == [] and watch.list_unavailable() == []


@settings(deadline=None, max_examples=40)
@given(own=st.integers(0, 400), other=st.integers(0, 400), idle=st.integers(1, 400), stolen=st.integers(0, 400))
def test_shares_are_of_all_cpus_and_our_own_time_is_not_in_them(
    tmp_path_factory, own: int, other: int, idle: int, stolen: int
) -> None:
    root = machines.pi5(tmp_path_factory.mktemp("pi"))
    clock = Own()
    watch = make_watch(root, clock)
    machines.write(root, {"proc/stat": machines.stat_line(1000 + own + other, 9000 + idle, stolen)})
    clock.seconds = own / 100
    sample = watch.sample("decode")
    total = own + other + idle + stolen
    assert sample.other_busy_share == pytest.approx(other / total)
    assert sample.stolen_share == pytest.approx(stolen / total)
    assert ("busy" in kinds(watch)) == (other / total > 0.05)
    assert ("stolen" in kinds(watch)) == (stolen / total > 0.02)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [("0x1", "low_voltage"), ("0x2", "throttled"), ("0x4", "throttled"), ("0x8", "throttled"), ("50000", None)],
)
def test_the_firmware_of_a_raspberry_pi_is_heard(tmp_path: Path, bits: str, expected: str | None) -> None:
    root = machines.pi5(tmp_path)
    watch = make_watch(root)
    machines.write(root, {machines.FIRMWARE: bits.removeprefix("0x")})
    watch.sample("compute")
    assert kinds(watch) == ([expected] if expected else [])  # 0x50000 is of the past: noted at the start only
    assert all(note.stage == "compute" and "firmware" in note.text for note in watch.notes)


def test_what_the_firmware_saw_before_is_noted_at_the_start(tmp_path: Path) -> None:
    root = machines.pi5(tmp_path)
    machines.write(root, {machines.FIRMWARE: "50000"})
    watch = make_watch(root)
    assert sorted(kinds(watch)) == ["low_voltage", "throttled"]
    assert all("since the device was started" in note.text for note in watch.notes)


def test_heat_cooling_and_counters(tmp_path: Path) -> None:
    root = machines.pi5(tmp_path)
    counter = f"{machines.CPU}/cpu0/thermal_throttle/core_throttle_count"
    machines.write(root, {counter: 7})
    watch = make_watch(root)
    watch.sample("first")
    assert watch.notes == []
    machines.write(
        root,
        {
            counter: 9,
            "sys/class/thermal/thermal_zone0/temp": 84_000,
            "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0",
            "sys/class/thermal/cooling_device0/cur_state": 2,
        },
    )
    watch.sample("second")
    watch.sample("second")  # noted once
    texts = " | ".join(note.text for note in watch.notes)
    assert sorted(kinds(watch)) == ["hot", "throttled", "throttled"]
    assert "84 °C" in texts and "2 times" in texts and "cpufreq-cpu0" in texts


def test_a_clock_that_falls_is_throttling_only_when_it_is_hot(tmp_path: Path) -> None:
    root = machines.pi5(tmp_path)
    watch = make_watch(root)
    watch.note_clock(2.4e9, "compute")
    watch.note_clock(2.35e9, "compute")
    assert watch.notes == []
    watch.note_clock(1.5e9, "clock again")
    machines.write(root, {"sys/class/thermal/thermal_zone0/temp": 85_000})
    watch.note_clock(1.4e9, "later")
    assert kinds(watch) == ["clock", "throttled"]
    assert "2.40 to 1.50 GHz" in watch.notes[0].text


def test_a_capped_or_saving_clock_is_noted_at_the_start(tmp_path: Path) -> None:
    root = machines.pi5(tmp_path)
    machines.write(
        root,
        {
            f"{machines.CPU}/cpu0/cpufreq/scaling_governor": "powersave",
            f"{machines.CPU}/cpu3/cpufreq/scaling_max_freq": 1_500_000,
        },
    )
    watch = make_watch(root)
    assert kinds(watch) == ["clock", "clock"]


def test_swapping_is_noted(tmp_path: Path) -> None:
    root = machines.pi5(tmp_path)
    watch = make_watch(root)
    machines.write(root, {"proc/meminfo": "MemTotal: 8245908 kB\nSwapTotal: 204784 kB\nSwapFree: 104784 kB"})
    watch.sample("decode")
    assert kinds(watch) == ["swap"]


def test_what_a_machine_does_not_tell_is_listed(tmp_path: Path) -> None:
    watch = make_watch(tmp_path)
    watch.sample("anything")
    assert {missing.what for missing in watch.list_unavailable()} == {"temperature", "clock", "load"}
    assert watch.samples[0].other_busy_share is None


def test_an_alarm_of_low_voltage_is_enough(tmp_path: Path) -> None:
    root = machines.write(
        tmp_path, {"sys/class/hwmon/hwmon0/name": "rpi_volt", "sys/class/hwmon/hwmon0/in0_lcrit_alarm": 0}
    )
    watch = make_watch(root)
    watch.sample("first")
    assert watch.notes == []
    machines.write(root, {"sys/class/hwmon/hwmon0/in0_lcrit_alarm": 1})
    watch.sample("second")
    assert kinds(watch) == ["low_voltage"]


def test_older_boards_have_no_address_in_the_firmware_s_path(tmp_path: Path) -> None:
    root = machines.write(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": "4"})
    watch = make_watch(root)
    watch.sample("decode")
    assert kinds(watch) == ["throttled"]


def test_an_emulated_machine_is_noted_at_the_start(tmp_path: Path) -> None:
    process = machines.pi5(tmp_path) / "proc/thread-self"
    process.mkdir()
    for program, emulator in (("/usr/bin/python3.11", None), ("/usr/bin/qemu-aarch64-static", "qemu-aarch64")):
        (process / "exe").unlink(missing_ok=True)
        (process / "exe").symlink_to(program)
        texts = [note.text for note in Watch(tmp_path).notes if note.kind == "emulated"]
        assert texts == ([] if emulator is None else [f"its programs are interpreted by {emulator}"])
