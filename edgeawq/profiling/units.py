"""Figures for people: times, rates and sizes with their unit, three digits at most."""

from __future__ import annotations

from collections.abc import Sequence

_PREFIXES: Sequence[tuple[float, str]] = (
    (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"),
)  # fmt: skip


def three_digits(value: float) -> str:
    """ "0.123", "12.3", "1230": never an exponent for values a report has."""
    if value == 0:
        return "0"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{float(text):.0f}" if abs(value) >= 1 else f"{float(text):.10f}".rstrip("0")


def with_prefix(value: float, unit: str) -> str:
    """ "13.5 GB/s", "1.6 µs" (powers of 1000)."""
    for factor, prefix in _PREFIXES:
        if abs(value) >= 0.9995 * factor:
            return f"{three_digits(value / factor)} {prefix}{unit}"
    return f"{three_digits(value)} {unit}"


def show(value: float, unit: str) -> str:
    """A figure in one of a comparison's units: B, B/s, op/s and s with a prefix, the others plain."""
    return with_prefix(value, unit) if unit in ("B", "B/s", "op/s", "s", "Hz", "W") else f"{three_digits(value)} {unit}"


def binary_size(size: int) -> str:
    """ "32 KiB", "16 MiB"."""
    for factor, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= factor:
            return f"{three_digits(size / factor)} {name}"
    return f"{size} B"
