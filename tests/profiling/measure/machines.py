"""Fake /sys and /proc trees of the machines that nobody has at hand."""

from __future__ import annotations

from pathlib import Path

CPU = "sys/devices/system/cpu"
FIRMWARE = "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def stat_line(busy: int, idle: int, stolen: int = 0) -> str:
    return f"cpu  {busy} 0 0 {idle} 0 0 0 {stolen} 0 0\ncpu0 {busy} 0 0 {idle} 0 0 0 {stolen} 0 0"


def pi5(root: Path) -> Path:
    files: dict[str, object] = {
        "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0",
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/meminfo": "MemTotal: 8245908 kB\nMemAvailable: 7000000 kB\nSwapTotal: 204784 kB\nSwapFree: 204784 kB",
        "proc/stat": stat_line(1000, 9000),
        "proc/loadavg": "0.25 0.10 0.05 1/200 4242",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": 61250,
        FIRMWARE: "0",
    }
    for cpu in range(4):
        clock = f"{CPU}/cpu{cpu}/cpufreq"
        files[f"{clock}/scaling_cur_freq"] = 2_400_000
        files[f"{clock}/scaling_max_freq"] = 2_400_000
        files[f"{clock}/cpuinfo_max_freq"] = 2_400_000
        files[f"{clock}/scaling_governor"] = "ondemand"
    for index, (level, kind, size, shared) in enumerate(
        [
            (1, "Data", "64K", "0"),
            (1, "Instruction", "64K", "0"),
            (2, "Unified", "512K", "0"),
            (3, "Unified", "2048K", "0-3"),
        ]
    ):
        cache = f"{CPU}/cpu0/cache/index{index}"
        files |= {
            f"{cache}/level": level,
            f"{cache}/type": kind,
            f"{cache}/size": size,
            f"{cache}/shared_cpu_list": shared,
        }
    return write(root, files)


PMIC = """   3V7_WL_SW_A current(0)=1.00000000A
   VDD_CORE_A current(7)=2.00000000A
   3V7_WL_SW_V volt(8)=5.00000000V
   VDD_CORE_V volt(15)=0.90000000V
   EXT5V_V volt(24)=5.09000000V
"""  # 5 V · 1 A and 0.9 V · 2 A; a voltage without a current does not count


def pi5_power(root: Path) -> Path:
    """A Raspberry Pi with the device that `vcgencmd` asks the firmware through."""
    return write(root, {"dev/vcio": ""})


def orin(root: Path) -> Path:
    """INA3221 of a Jetson Orin: a channel of the whole module and one of CPU and GPU."""
    chip = "sys/class/hwmon/hwmon1"
    files: dict[str, object] = {f"{chip}/name": "ina3221"}
    for channel, (label, volts, amperes) in enumerate(
        [("VDD_IN", 19_000, 500), ("VDD_CPU_GPU_CV", 19_000, 200), ("VDD_SOC", 19_000, 100)], start=1
    ):
        files |= {
            f"{chip}/in{channel}_label": label,
            f"{chip}/in{channel}_input": volts,
            f"{chip}/curr{channel}_input": amperes,
        }
    return write(root, files)


def rapl(root: Path, microjoules: int = 1_000_000) -> Path:
    zone = "sys/class/powercap/intel-rapl:0"
    files: dict[str, object] = {
        f"{zone}/name": "package-0",
        f"{zone}/energy_uj": microjoules,
        f"{zone}/max_energy_range_uj": 262_143_328_850,
        f"{zone}:0/name": "core",
        f"{zone}:0/energy_uj": 5,
    }
    return write(root, files)
