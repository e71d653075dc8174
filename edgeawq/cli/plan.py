"""`edgeawq plan`: what a model would take and give on devices, before anything is downloaded or quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeawq.cli.device_options import inventory_option, json_option
from edgeawq.errors import EdgeawqError, UsageError

THIS_MACHINE = ("host", "localhost")  # as a profile, and as a device of every inventory

if TYPE_CHECKING:
    from edgeawq.planning.device import PlanDevice
    from edgeawq.planning.plan import Plan, Workload
    from edgeawq.planning.shape import ModelShape
    from edgeawq.profiling.schema import Profile


@click.command(name="plan")
@click.argument("model")
@click.option("--device", "-d", "devices", metavar="NAME[,NAME…]", default="", help="Profiles, devices, or `host`.")
@click.option("--context", type=int, metavar="TOKENS", help="Room for the conversation [the model's, at most 4096].")
@click.option("--prompt", type=int, default=512, show_default=True, metavar="TOKENS", help="Length of the prompt.")
@click.option("--kv-bits", type=int, default=16, show_default=True, help="Bits of the KV cache: 16 or 8.")
@click.option("--memory", metavar="SIZE", help="Memory of the board, such as 8GiB, instead of the profile's.")
@click.option("--processor", type=click.Choice(["cpu", "gpu"]), help="Of a device with both [gpu].")
@click.option(
    "--measured",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What `edgeawq profile` measured [the newest that is kept].",
)
@click.option("--all", "show_all", is_flag=True, help="Show every quantization, not only those worth a look.")
@inventory_option
@json_option
def command(
    model: str,
    devices: str,
    context: int | None,
    prompt: int,
    kv_bits: int,
    memory: str | None,
    processor: str | None,
    measured: Path | None,
    show_all: bool,
    inventory: str | None,
    as_json: bool,
) -> None:
    """Say what a model would take and give on devices, for each number of bits and group size.

    MODEL is a folder, a config.json, a GGUF file, embedded:smollm2-135m-instruct, or a well-known name such as
    llama-2-7b. No weight is read. Speeds are predictions: what the memory and the cores allow at most, and what is to
    be expected from the efficiency that was reached before.

    \b
    Example:
      edgeawq plan llama-2-7b --device pi4,pi5,orin-agx
      edgeawq plan ./my-model/config.json --device pi5 --memory 16GiB --context 8192
      edgeawq plan embedded:smollm2-135m-instruct --device host --json
    """
    from edgeawq.cli.console import get_console
    from edgeawq.cli.plan_text import describe_plan, print_plan
    from edgeawq.planning.plan import Workload
    from edgeawq.planning.shape import read_shape

    names = [name.strip() for name in devices.split(",") if name.strip()]
    if not names:
        from device_profiles.profile import list_profiles

        raise UsageError(
            "no device is named", remedy=f"--device NAME, one or more of: host, {', '.join(list_profiles())}"
        )
    workload = Workload(context, prompt, kv_bits)
    shape = read_shape(model)
    memory_bytes = None if memory is None else parse_size(memory)
    plans = [_plan(shape, name, workload, processor or "", memory_bytes, measured, inventory) for name in names]
    if as_json:
        click.echo(json.dumps([describe_plan(plan, model) for plan in plans], indent=1))
        return
    console = get_console()
    for index, plan in enumerate(plans):
        if index:
            console.print()
        print_plan(console, plan, model, show_all=show_all)


def parse_size(text: str) -> int:
    """Bytes of "8GiB", "8GB", "512M" (powers of 1000 without the i); UsageError for anything else."""
    import re

    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,3})?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    factor = None if match is None else (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " ")
    size = 0 if match is None or factor is None else int(float(match[1]) * factor)
    if size <= 0:
        raise UsageError(f"{text!r} is not an amount of memory", remedy="write it like 8GiB, 4GB or 512MiB")
    return size


def _plan(
    shape: ModelShape,
    name: str,
    workload: Workload,
    processor: str,
    memory_bytes: int | None,
    measured: Path | None,
    inventory: str | None,
) -> Plan:
    from edgeawq.planning.calibration import apply_measured, calibrate
    from edgeawq.planning.plan import make_plan
    from edgeawq.profiling.history import read_profile

    device = _find_device(name, processor, memory_bytes, inventory)
    profile = read_profile(measured) if measured is not None else _find_measured(name)
    if profile is None or device.processor != "cpu":
        return make_plan(shape, device, workload)
    return make_plan(shape, apply_measured(device, profile), workload, calibrate(profile))


def _find_device(name: str, processor: str, memory_bytes: int | None, inventory: str | None) -> PlanDevice:
    """A device by the name of its profile, or a device of the inventory by its own."""
    from device_profiles.detect import find_profile
    from device_profiles.profile import list_profiles
    from edgeawq.planning.device import describe_device

    if name in THIS_MACHINE:
        return describe_device(find_profile("host"), processor, memory_bytes)
    if name in list_profiles():
        return describe_device(find_profile(name), processor, memory_bytes)
    from edgeawq.deploy.inventory import load_inventory

    known = load_inventory(inventory).devices
    if name not in known or not known[name].profile:
        raise UsageError(
            f"{name!r} is neither a device profile nor a device of the inventory",
            remedy=f"profiles: {', '.join(list_profiles())}, host; `edgeawq device list` shows the inventory",
        )
    return describe_device(find_profile(known[name].profile), processor, memory_bytes)


def _find_measured(name: str) -> Profile | None:
    """The newest profile that was measured on this very device, where one is kept."""
    from edgeawq.deploy.cache import cache_folder
    from edgeawq.profiling.history import load_history, profile_folder

    found: list[Profile] = []
    for folder in THIS_MACHINE if name in THIS_MACHINE else (name,):
        try:
            found += load_history(profile_folder(cache_folder("profiles"), folder))[-1:]
        except (EdgeawqError, OSError):
            continue  # a cache that cannot be read costs precision only; the plan says what it used
    return max(found, key=lambda profile: profile.created, default=None)
