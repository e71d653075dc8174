"""Device profiles: one TOML per device, with the source of every figure.

Shipped profiles lie in `data/`; a user's own in ~/.config/edgeawq/profiles/*.toml, where the same name overrides.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from device_profiles.target import Target
from edgeawq.errors import ProfileError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_PROFILE_BYTES = 1 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
_REMEDY = "docs/contributing-device.md describes the file"

# figure → must every profile have it? Integers are counts and bytes, the rest are rates per second.
FIGURES: Mapping[str, bool] = {
    "cores": True,
    "memory_bytes": True,
    "bandwidth_theory_bytes_per_s": True,
    "clock_hz": False,
    "bandwidth_measured_bytes_per_s": False,
    "bandwidth_one_core_bytes_per_s": False,
    "peak_fp32_flop_per_s": False,
    "peak_int8_op_per_s": False,
    "gpu_peak_fp16_flop_per_s": False,
    "gpu_peak_int8_op_per_s": False,
    "system_memory_bytes": False,
    "decode_efficiency": False,
    "prefill_efficiency": False,
    "gpu_decode_efficiency": False,
    "gpu_prefill_efficiency": False,
}
_INTEGERS = ("cores", "memory_bytes", "system_memory_bytes")
_FRACTIONS = tuple(name for name in FIGURES if name.endswith("efficiency"))


@dataclass(frozen=True)
class DetectionRule:
    """How a device of this kind is recognized; see `device_profiles.detect`."""

    device_tree: tuple[str, ...] = ()  # parts of /proc/device-tree/model
    cpu_parts: tuple[str, ...] = ()  # "CPU part" of /proc/cpuinfo, such as 0xd08
    flags: tuple[str, ...] = ()  # flags of /proc/cpuinfo that the profile's code may use; all must be there


@dataclass(frozen=True)
class InnerLoop:
    """What a static analysis of a kernel's inner loop says; never a measurement."""

    bits: int  # of the weights
    tokens: int  # that share one pass over the weights
    group_size: int
    cycles: float  # of one core, for 32 weights and one token
    source: str


@dataclass(frozen=True)
class DeviceProfile:
    """What a device is and how fast it can be. Rates are of the CPU unless the name says gpu; None = not known.

    One multiply-add counts as two operations. `sources` gives for every figure where it comes from. An efficiency is
    the part of the roof that a language model reached on such a device: of `bandwidth_bytes_per_s` in decode, of the
    peak rate in prefill.
    """

    name: str
    title: str
    target: Target
    cores: int
    memory_bytes: int
    bandwidth_theory_bytes_per_s: float | None = None
    clock_hz: float | None = None
    bandwidth_measured_bytes_per_s: float | None = None
    bandwidth_one_core_bytes_per_s: float | None = None
    peak_fp32_flop_per_s: float | None = None
    peak_int8_op_per_s: float | None = None
    gpu_peak_fp16_flop_per_s: float | None = None
    gpu_peak_int8_op_per_s: float | None = None
    system_memory_bytes: int | None = None  # what the operating system itself needs
    decode_efficiency: float | None = None
    prefill_efficiency: float | None = None
    gpu_decode_efficiency: float | None = None
    gpu_prefill_efficiency: float | None = None
    loops: tuple[InnerLoop, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    detection: DetectionRule = field(default_factory=DetectionRule, compare=False)

    @property
    def bandwidth_bytes_per_s(self) -> float | None:
        """The bandwidth to reckon with: the measured one where there is one, else the theoretical."""
        return self.bandwidth_measured_bytes_per_s or self.bandwidth_theory_bytes_per_s

    @property
    def bandwidth_source(self) -> str:
        """Where `bandwidth_bytes_per_s` comes from; empty when there is none."""
        kind = "measured" if self.bandwidth_measured_bytes_per_s else "theory"
        return self.sources.get(f"bandwidth_{kind}_bytes_per_s", "")


def load_profile(name: str) -> DeviceProfile:
    """The profile called `name`, a user's own first. Raises ProfileError for an unknown name or a wrong file."""
    if not _NAME.fullmatch(name):
        raise ProfileError(f"{name!r} is not a profile name", remedy="use lower-case letters, digits and hyphens")
    path = user_profile_folder() / f"{name}.toml"
    if path.is_file():
        if path.stat().st_size > MAX_PROFILE_BYTES:
            raise ProfileError(f"{path} is larger than {MAX_PROFILE_BYTES} bytes", remedy=_REMEDY)
        return parse_profile(name, path.read_bytes(), str(path))
    shipped = resources.files("device_profiles") / "data" / f"{name}.toml"
    if not shipped.is_file():
        raise ProfileError(
            f"no device profile is called {name!r}; there are: {', '.join(list_profiles())}",
            remedy="`edgeawq pack --list-devices` shows them; your own go into "
            f"{user_profile_folder()}/NAME.toml (docs/contributing-device.md)",
        )
    return parse_profile(name, shipped.read_bytes(), f"data/{name}.toml")


def list_profiles() -> list[str]:
    """The names of all profiles, shipped and the user's own, sorted."""
    shipped = [entry.name for entry in (resources.files("device_profiles") / "data").iterdir()]
    folder = user_profile_folder()
    own = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    names = {entry.removesuffix(".toml") for entry in (*shipped, *own) if entry.endswith(".toml")}
    return sorted(name for name in names if _NAME.fullmatch(name))


def user_profile_folder() -> Path:
    """Where a user's own profiles lie: ~/.config/edgeawq/profiles, or below XDG_CONFIG_HOME."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "edgeawq" / "profiles"


def parse_profile(name: str, data: bytes, where: str) -> DeviceProfile:
    """Read one profile's TOML; `where` names the file in messages."""
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise ProfileError(f"{where} is not valid TOML: {error}", remedy=_REMEDY) from None
    _check_keys(document, {"title", "target", "figures"}, {"detect", "loops"}, where)
    target = _table(document, "target", where)
    _check_keys(target, {"triple", "cpu", "features", "isa"}, set(), f"{where} [target]")
    detect = _table(document, "detect", where)
    _check_keys(detect, set(), {"device_tree", "cpu_parts", "flags"}, f"{where} [detect]")
    values, sources = _read_figures(_table(document, "figures", where), where)
    return DeviceProfile(
        name=name,
        title=_text(document, "title", where),
        target=Target(
            triple=_text(target, "triple", where),
            cpu=_text(target, "cpu", where),
            features=_texts(target, "features", where),
            isa=_text(target, "isa", where),
        ),
        **values,
        loops=tuple(_read_loops(document.get("loops", []), where)),
        sources=sources,
        detection=DetectionRule(**{key: _texts(detect, key, where) for key in detect}),
    )


def _read_loops(loops: object, where: str) -> list[InnerLoop]:
    if not isinstance(loops, list):
        raise ProfileError(f"{where}: loops is not a list of tables ([[loops]])", remedy=_REMEDY)
    found = []
    for index, loop in enumerate(loops):
        place = f"{where} [[loops]] {index + 1}"
        if not isinstance(loop, dict):
            raise ProfileError(f"{place} is not a table", remedy=_REMEDY)
        _check_keys(loop, {"bits", "tokens", "group_size", "cycles", "source"}, set(), place)
        for key in ("bits", "tokens", "group_size"):
            if type(loop[key]) is not int or not 0 < loop[key] <= 4096:
                raise ProfileError(f"{place}: {key} is {loop[key]!r}, not a whole number to 4096", remedy=_REMEDY)
        cycles = loop["cycles"]
        if not isinstance(cycles, (int, float)) or isinstance(cycles, bool) or not 0 < cycles < 1e6:
            raise ProfileError(f"{place}: cycles is {cycles!r}, not a positive number", remedy=_REMEDY)
        source = _text(loop, "source", place)
        found.append(InnerLoop(loop["bits"], loop["tokens"], loop["group_size"], float(cycles), source))
    return found


def _read_figures(figures: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, str]]:
    required = {name for name, needed in FIGURES.items() if needed}
    _check_keys(figures, required, FIGURES.keys() - required, f"{where} [figures]")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name in figures:
        table = _table(figures, name, where)
        _check_keys(table, {"value", "source"}, set(), f"{where} [figures.{name}]")
        value = table["value"]
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e18:
            raise ProfileError(f"{where}: {name} is {value!r}, not a positive number", remedy=_REMEDY)
        if name in _INTEGERS and not isinstance(value, int):
            raise ProfileError(f"{where}: {name} is {value!r}, not a whole number", remedy=_REMEDY)
        if name in _FRACTIONS and value > 1:
            raise ProfileError(f"{where}: {name} is {value!r}, not a part of 1", remedy=_REMEDY)
        values[name] = value if name in _INTEGERS else float(value)
        sources[name] = _text(table, "source", f"{where} [figures.{name}]")
    return values, sources


def _check_keys(table: Mapping[str, Any], required: set[str], optional: set[str], where: str) -> None:
    missing = sorted(required - table.keys())
    unknown = sorted(table.keys() - required - optional)
    if missing or unknown:
        what = f"has no {', '.join(missing)}" if missing else f"has the unknown key {', '.join(unknown)}"
        raise ProfileError(f"{where} {what}", remedy=_REMEDY)


def _table(document: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise ProfileError(f"{where}: {key} is not a table", remedy=_REMEDY)
    return value


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table[key]
    if not isinstance(value, str) or not value.strip():
        raise ProfileError(f"{where}: {key} is not a text", remedy=_REMEDY)
    return value


def _texts(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = table[key]
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ProfileError(f"{where}: {key} is not a list of texts", remedy=_REMEDY)
    return tuple(value)
