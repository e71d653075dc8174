"""Energy sensors: RAPL counters (x86), INA power monitors (Jetson), the power chip of a Raspberry Pi 5.

A sensor tells either joules so far, or watts at a moment; the latter is sampled by a thread while a stage runs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeawq.profiling.measure import system
from edgeawq.profiling.schema import EnergyPoint, Unavailable

SAMPLE_EVERY_S = 0.05
# Names of rails that measure a whole board or module.
_BOARD_RAILS = ("vdd_in", "pom_5v_in", "vin_sys_5v0", "vdd_total")
_CPU_RAILS = ("vdd_cpu_gpu_cv", "vdd_cpu_cv", "vdd_cpu", "pom_5v_cpu")

_PMIC_LINE = re.compile(r"^\s*(\w+_[AV])\s+\w+\(\d+\)=(\d{1,6}(?:\.\d{1,12})?)[AV]\s*$", re.MULTILINE)

Scope = Literal["board", "cpu"]


@dataclass(frozen=True)
class Sensor:
    """A source of energy or power. read_joules wraps around at `wraps_at`; otherwise there is read_watts."""

    name: str
    scope: Scope
    read_joules: Callable[[], float | None] | None = None
    wraps_at: float = 0.0
    read_watts: Callable[[], float | None] | None = None


def find_sensors(root: Path = system.ROOT, ask_firmware: Callable[[], str] | None = None) -> list[Sensor]:
    """All sensors that can be read, those of a whole board first.

    ask_firmware: what `vcgencmd pmic_read_adc` prints on a Raspberry Pi 5, empty elsewhere.
    """
    found = [*_find_rapl(root), *_find_hwmon(root), *_find_iio(root)]
    if (root / "dev/vcio").exists():
        found += _find_pmic(ask_firmware or run_vcgencmd)
    return sorted(found, key=lambda sensor: (sensor.scope != "board", sensor.name))


def run_vcgencmd() -> str:
    """Voltages and currents of a Raspberry Pi 5's power chip; empty where there is no such program or chip."""
    program = shutil.which("vcgencmd")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, "pmic_read_adc"], capture_output=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[:100_000].decode("ascii", "replace") if done.returncode == 0 else ""


def parse_pmic(text: str) -> float | None:
    """Watts of all rails that have both a current ("VDD_CORE_A current(7)=1.1A") and a voltage ("VDD_CORE_V …")."""
    values = {name: float(value) for name, value in _PMIC_LINE.findall(text)}
    rails = [name[:-2] for name in values if name.endswith("_A") and f"{name[:-2]}_V" in values]
    return sum(values[f"{rail}_A"] * values[f"{rail}_V"] for rail in rails) if rails else None


def explain_missing(root: Path = system.ROOT) -> Unavailable:
    """Why there is no sensor."""
    zones = system.list_entries(root, "sys/class/powercap", r"intel-rapl:\d+")
    if zones and system.read_number(root, f"{zones[0]}/energy_uj") is None:
        return Unavailable("energy", "RAPL counters are there but only root may read them (energy_uj)")
    return Unavailable("energy", "the device exposes no power sensor: no RAPL, no INA monitor, no power chip")


def measure_energy(
    sensor: Sensor,
    stage: str,
    work: Callable[[], int],
    *,
    now: Callable[[], float] = time.perf_counter,
    every_s: float = SAMPLE_EVERY_S,
) -> EnergyPoint | None:
    """Energy while `work` runs, which returns the number of tokens; None when the sensor stops answering."""
    if sensor.read_joules is not None:
        before, start = sensor.read_joules(), now()
        tokens = work()
        after, end = sensor.read_joules(), now()
        if before is None or after is None or end <= start:
            return None
        joules = after - before if after >= before else after - before + sensor.wraps_at
        return _make_point(sensor, stage, joules, end - start, tokens) if joules >= 0 else None
    assert sensor.read_watts is not None
    readings: list[tuple[float, float]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            watts = sensor.read_watts() if sensor.read_watts is not None else None
            if watts is not None:
                readings.append((now(), watts))
            done.wait(every_s)

    thread = threading.Thread(target=watch, daemon=True)
    start = now()
    thread.start()
    try:
        tokens = work()
    finally:
        done.set()
        thread.join()
    end = now()
    if not readings or end <= start:
        return None
    return _make_point(sensor, stage, integrate(readings, start, end), end - start, tokens)


def integrate(readings: list[tuple[float, float]], start: float, end: float) -> float:
    """Joules of (time, watts): straight lines between readings, level before the first and after the last."""
    points = [(start, readings[0][1]), *((min(max(at, start), end), watts) for at, watts in readings)]
    points.append((end, readings[-1][1]))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(points, points[1:], strict=False))


def _make_point(sensor: Sensor, stage: str, joules: float, seconds: float, tokens: int) -> EnergyPoint:
    per_joule = tokens / joules if tokens and joules > 0 else None
    return EnergyPoint(sensor.name, sensor.scope, stage, joules, seconds, tokens, joules / seconds, per_joule)


def _find_rapl(root: Path) -> list[Sensor]:
    sensors = []
    for zone in system.list_entries(root, "sys/class/powercap", r"intel-rapl:\d+"):
        if system.read_number(root, f"{zone}/energy_uj") is None:
            continue
        name = system.clean(system.read_text(root, f"{zone}/name") or "package")
        scope: Scope = "board" if name == "psys" else "cpu"
        wraps_at = (system.read_number(root, f"{zone}/max_energy_range_uj") or 0) / 1e6
        sensors.append(Sensor(f"rapl {name}", scope, _scaled(root, f"{zone}/energy_uj", 1e-6), wraps_at))
    return sensors


def _find_hwmon(root: Path) -> list[Sensor]:
    """INA3221 and its like."""
    sensors = []
    for chip in system.list_entries(root, "sys/class/hwmon", r"hwmon\d+"):
        chip_name = system.clean(system.read_text(root, f"{chip}/name") or "")
        if chip_name.startswith("ina"):
            for channel in range(1, 9):
                label = system.read_text(root, f"{chip}/in{channel}_label") or f"channel {channel}"
                sensors += _make_rail(root, chip, chip_name, label, channel)
    return sensors


def _make_rail(root: Path, chip: str, chip_name: str, label: str, channel: int) -> list[Sensor]:
    scope = _scope_of(label)
    if scope is None:
        return []
    power = f"{chip}/power{channel}_input"
    if system.read_number(root, power) is not None:
        return [Sensor(f"{chip_name} {system.clean(label)}", scope, read_watts=_scaled(root, power, 1e-6))]
    volts, amperes = f"{chip}/in{channel}_input", f"{chip}/curr{channel}_input"
    if system.read_number(root, volts) is None or system.read_number(root, amperes) is None:
        return []
    return [Sensor(f"{chip_name} {system.clean(label)}", scope, read_watts=_product(root, volts, amperes))]


def _find_pmic(ask: Callable[[], str]) -> list[Sensor]:
    if parse_pmic(ask()) is None:
        return []
    return [Sensor("Raspberry Pi power chip", "board", read_watts=lambda: parse_pmic(ask()))]


def _find_iio(root: Path) -> list[Sensor]:
    """Older Jetsons: INA3221 as an industrial I/O device with names and milliwatts of its rails."""
    sensors = []
    for device in system.list_entries(root, "sys/bus/iio/devices", r"iio:device\d+"):
        for channel in range(4):
            label = system.read_text(root, f"{device}/rail_name_{channel}") or ""
            scope, power = _scope_of(label), f"{device}/in_power{channel}_input"
            if scope is not None and system.read_number(root, power) is not None:
                sensors.append(Sensor(f"iio {system.clean(label)}", scope, read_watts=_scaled(root, power, 1e-3)))
    return sensors


def _scope_of(label: str) -> Scope | None:
    name = label.strip().lower()
    if name in _BOARD_RAILS:
        return "board"
    return "cpu" if name in _CPU_RAILS else None


def _scaled(root: Path, name: str, factor: float) -> Callable[[], float | None]:
    def read() -> float | None:
        value = system.read_number(root, name)
        return None if value is None else value * factor

    return read


def _product(root: Path, volts: str, amperes: str) -> Callable[[], float | None]:
    """Watts of a rail in millivolts and milliamperes."""

    def read() -> float | None:
        v, a = system.read_number(root, volts), system.read_number(root, amperes)
        return None if v is None or a is None else v * a * 1e-6

    return read
