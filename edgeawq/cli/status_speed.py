"""The speed of devices for `edgeawq status`: what was last measured, against their past or their profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from edgeawq.deploy.inventory import Device
    from edgeawq.profiling.health import Health
    from edgeawq.profiling.schema import Profile


def find_health(device: Device) -> Health | None:
    """How `device` stood when it was last measured; None where it never was, or the cache cannot be read."""
    from edgeawq.deploy.cache import cache_folder
    from edgeawq.errors import EdgeawqError
    from edgeawq.profiling.health import judge_health
    from edgeawq.profiling.history import load_history, profile_folder

    names = (device.name, "host") if device.is_local else (device.name,)
    for name in names:
        try:
            history = load_history(profile_folder(cache_folder("profiles"), name))
        except (EdgeawqError, OSError):
            continue
        if history:
            speed, source = expect_decode(history[-1], device.profile)
            return judge_health(history, speed, source)
    return None


def expect_decode(profile: Profile, profile_name: str) -> tuple[float | None, str]:
    """(tokens per second, where from) that a device profile promises for the model measured in `profile`."""
    from device_profiles.profile import load_profile
    from edgeawq.errors import EdgeawqError
    from edgeawq.planning.device import describe_device
    from edgeawq.profiling.verdict_parts import find_phase

    phase = find_phase(profile.model, "decode")
    if phase is None or not phase.bytes_per_step or not profile_name or profile_name == "host":
        return None, ""
    try:
        device = describe_device(load_profile(profile_name), "cpu")
    except EdgeawqError:
        return None, ""  # a profile of the user's own that is gone or broken: other commands say so
    if device.bandwidth is None or device.decode_efficiency is None:
        return None, ""
    speed = device.bandwidth.value * device.decode_efficiency.value / phase.bytes_per_step
    return speed, f"the profile {profile_name}"


def describe_health(health: Health | None) -> dict[str, Any] | None:
    """A device's speed as plain JSON values."""
    if health is None:
        return None
    return {**asdict(health), "share_of_expected": health.share_of_expected, "is_slow": health.is_slow}


def print_speeds(
    console: Console, found: list[tuple[str, Health]], running: Mapping[str, str] = MappingProxyType({})
) -> None:
    """A table of what was measured, and a line for each kind of figure that is well below the past.

    running: device → name of the model that runs there; one that was measured with another says so.
    """
    from rich.table import Table
    from rich.text import Text

    from edgeawq.profiling.units import show, three_digits

    if not found:
        return
    table = Table(box=None, pad_edge=False)
    for title in ("device", "decode", "expected", "measured"):
        table.add_column(title, overflow="fold")
    for name, health in found:
        speed, expected = health.decode_tokens_per_s, health.expected_tokens_per_s
        share = health.share_of_expected
        text = "-" if speed is None else f"{three_digits(speed)} tokens/s"
        promise = "-" if expected is None else f"{three_digits(expected)} ({health.expected_from.removeprefix('the ')})"
        percent = "" if share is None else f", {100 * share:.0f} %"
        style = "red" if health.is_slow else "green" if share is not None else ""
        when = health.created[:16].replace("T", " ")
        if health.model and health.model != running.get(name):
            when += f" with {health.model}"
        table.add_row(Text(name), Text(text + percent, style=style), Text(promise), Text(when))
    console.print()
    console.print(table)
    for name, health in found:
        for drop in {drop.title.split()[0]: drop for drop in reversed(health.drops)}.values():  # the first of a kind
            past = f"{drop.profiles} earlier measurement{'' if drop.profiles == 1 else 's'}"
            console.print(
                f"{name}: {drop.title} is {show(drop.now, drop.unit)}, {100 * drop.now / drop.past:.0f} % of the"
                f" {show(drop.past, drop.unit)} of {past}",
                style="red",
                highlight=False,
                markup=False,
            )
        if health.is_slow and health.disturbed_by:
            console.print(
                f"{name}: the measurement was disturbed: {', '.join(health.disturbed_by)}",
                highlight=False,
                markup=False,
            )
        if health.is_slow:
            console.print(
                f"{name}: `edgeawq profile {name}` measures again and says why", highlight=False, markup=False
            )
