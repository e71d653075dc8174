"""Efficiencies of whole kinds of processors, for devices that nobody has measured (classes.toml)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class ClassFigure:
    """A part of the roof (0 … 1), and where it comes from."""

    value: float
    source: str


def find_class_figure(processor: str, name: str) -> ClassFigure | None:
    """The figure `name` ("decode_efficiency", "prefill_efficiency") of "cpu" or "gpu"; None where nobody knows it."""
    figure = _load().get(processor, {}).get(name)
    return None if figure is None else ClassFigure(float(figure["value"]), str(figure["source"]))


@lru_cache(maxsize=1)
def _load() -> dict[str, dict[str, dict[str, Any]]]:
    loaded: dict[str, dict[str, dict[str, Any]]] = tomllib.loads(
        (resources.files("device_profiles") / "classes.toml").read_text(encoding="utf-8")
    )
    return loaded
