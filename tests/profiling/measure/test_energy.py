"""Energy sensors, from fake trees."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeawq.profiling.measure.energy import explain_missing, find_sensors, integrate, measure_energy, parse_pmic
from tests.profiling.measure import machines


class Clock:
    """Seconds that a test moves on."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_rapl_counts_joules_and_only_whole_packages(tmp_path: Path) -> None:
    root = machines.rapl(tmp_path)
    (sensor,) = find_sensors(root)
    clock = Clock()

    def work() -> int:
        machines.rapl(root, 21_000_000)
        clock.seconds += 4.0
        return 100

    point = measure_energy(sensor, "decode", work, now=clock)
    assert point is not None
    assert (point.source, point.scope, point.tokens) == ("rapl package-0", "cpu", 100)
    assert point.joules == pytest.approx(20.0) and point.watts == pytest.approx(5.0)
    assert point.tokens_per_joule == pytest.approx(5.0)


def test_a_counter_that_starts_again(tmp_path: Path) -> None:
    root = machines.rapl(tmp_path, 262_143_000_000)
    (sensor,) = find_sensors(root)
    clock = Clock()

    def work() -> int:
        machines.rapl(root, 1_000_000)
        clock.seconds += 1.0
        return 0

    point = measure_energy(sensor, "idle", work, now=clock)
    assert point is not None
    assert point.joules == pytest.approx(1.32885)
    assert point.tokens_per_joule is None


def test_rails_of_an_orin(tmp_path: Path) -> None:
    sensors = find_sensors(machines.orin(tmp_path))
    assert [(sensor.name, sensor.scope) for sensor in sensors] == [
        ("ina3221 VDD_IN", "board"),
        ("ina3221 VDD_CPU_GPU_CV", "cpu"),
    ]
    assert sensors[0].read_watts is not None
    assert sensors[0].read_watts() == pytest.approx(9.5)


def test_the_older_jetson_s_rails(tmp_path: Path) -> None:
    device = "sys/bus/iio/devices/iio:device0"
    root = machines.write(
        tmp_path,
        {f"{device}/rail_name_0": "POM_5V_IN", f"{device}/in_power0_input": 4200, f"{device}/rail_name_1": "X"},
    )
    (sensor,) = find_sensors(root)
    assert sensor.read_watts is not None and sensor.read_watts() == pytest.approx(4.2)


def test_a_raspberry_pi_s_power_chip_is_the_sum_of_its_rails(tmp_path: Path) -> None:
    root = machines.pi5_power(tmp_path)
    (sensor,) = find_sensors(root, lambda: machines.PMIC)
    assert sensor.scope == "board" and sensor.read_watts is not None
    assert sensor.read_watts() == pytest.approx(6.8)
    point = measure_energy(sensor, "decode", lambda: 12, every_s=0.001)
    assert point is not None and point.watts == pytest.approx(6.8)
    assert point.tokens_per_joule == pytest.approx(12 / point.joules)
    assert find_sensors(root, lambda: "") == []  # a Pi 4: the firmware has nothing to say
    assert find_sensors(tmp_path / "no-pi", lambda: machines.PMIC) == []


@given(st.text(max_size=200) | st.just("VDD_A current(1)=1A") | st.just("VDD_V volt(1)=1V\nVDD_B_A current(0)=2A"))
def test_other_answers_of_the_firmware_are_no_power(text: str) -> None:
    assert parse_pmic(text) is None


def test_a_sensor_that_stops_answering_gives_nothing(tmp_path: Path) -> None:
    answers = iter([machines.PMIC] + [""] * 1000)
    (sensor,) = find_sensors(machines.pi5_power(tmp_path), lambda: next(answers))
    assert measure_energy(sensor, "decode", lambda: 1, every_s=0.001) is None


def test_why_there_is_none(tmp_path: Path) -> None:
    assert "no power sensor" in explain_missing(tmp_path).reason
    (tmp_path / "sys/class/powercap/intel-rapl:0").mkdir(parents=True)
    assert "root" in explain_missing(tmp_path).reason
    assert find_sensors(tmp_path) == []


@given(st.floats(0.1, 100), st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.1, 50))
def test_constant_power_is_power_times_time(watts: float, moments: list[float], seconds: float) -> None:
    readings = [(10 + seconds * moment, watts) for moment in sorted(moments)]
    assert integrate(readings, 10, 10 + seconds) == pytest.approx(watts * seconds)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 50)), min_size=1, max_size=20))
def test_energy_lies_between_the_lowest_and_the_highest_power(readings: list[tuple[float, float]]) -> None:
    joules = integrate(sorted(readings), 0, 1)
    low, high = min(watts for _, watts in readings), max(watts for _, watts in readings)
    assert low - 1e-9 <= joules <= high + 1e-9
