"""`edgeawq pack`: lay a quantized checkpoint out for one device."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeawq.errors import EdgeawqError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from device_profiles.profile import DeviceProfile
    from packager.pack import PackSummary


@click.command(name="pack")
@click.argument("checkpoint", required=False)
@click.option("--device", "-d", metavar="NAME", help="Device profile, or `host` for this computer.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Folder to write [CHECKPOINT-DEVICE.edgeawq].",
)
@click.option(
    "--head-bits", type=int, metavar="BITS", help="Bits of a head that the checkpoint has in float, 4 or 8 [8]."
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier bundle.")
@click.option("--no-golden", is_flag=True, help="Record no answer for the health check after a push.")
@click.option("--list-devices", is_flag=True, help="List the device profiles and end.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(
    checkpoint: str | None,
    device: str | None,
    output: Path | None,
    head_bits: int | None,
    overwrite: bool,
    no_golden: bool,
    list_devices: bool,
    as_json: bool,
) -> None:
    """Lay a quantized checkpoint out for one device.

    CHECKPOINT is what `edgeawq quantize` wrote, or any other AWQ checkpoint. The bundle holds the weights in the order
    in which the device's kernels read them, the kernels compiled for its CPU, the tokenizer, and the answer to a fixed
    prompt that a push compares with. The quantized values are kept bit for bit.

    \b
    Example:
      edgeawq pack ./smollm2-awq --device pi4 -o smollm2-pi4.edgeawq
      edgeawq pack ./smollm2-awq --device host
      edgeawq pack --list-devices
    """
    from edgeawq.cli.console import get_console, get_error_console

    if list_devices:
        profiles = _load_profiles()
        if as_json:
            click.echo(json.dumps([describe_profile(profile) for profile in profiles], indent=1))
        else:
            get_console().print(_tabulate_profiles(profiles))
        return
    if checkpoint is None or device is None:
        missing = "CHECKPOINT" if checkpoint is None else "--device"
        raise UsageError(
            f"pack needs {missing}",
            remedy="edgeawq pack CHECKPOINT --device NAME; `edgeawq pack --list-devices` lists the names",
        )
    from device_profiles.detect import find_profile
    from edgeawq.cli.pipeline_pack import pack_bundle

    profile = find_profile(device)
    target = output or Path(f"{Path(checkpoint.rstrip('/')).name.rpartition(':')[2]}-{profile.name}.edgeawq")
    summary = pack_bundle(
        checkpoint,
        profile,
        target,
        get_error_console(),
        head_bits=head_bits,
        overwrite=overwrite,
        golden=not no_golden,
        quiet=as_json,
    )
    if as_json:
        click.echo(json.dumps(describe_summary(summary, profile), indent=1))
        return
    console = get_console()
    console.print(_tabulate_summary(summary, profile))
    for note in _list_notes(summary, profile):
        console.print(f"note: {note}", markup=False, highlight=False)


def describe_summary(summary: PackSummary, profile: DeviceProfile) -> dict[str, Any]:
    """A pack's result as plain JSON values."""
    return {
        **asdict(summary),
        "path": str(summary.path),
        "notes": _list_notes(summary, profile),
        "decode_ceiling_tokens_per_s": _find_ceiling(summary, profile),
        "bandwidth_bytes_per_s": profile.bandwidth_bytes_per_s,
        "bandwidth_source": profile.bandwidth_source,
    }


def describe_profile(profile: DeviceProfile) -> dict[str, Any]:
    """A profile as plain JSON values."""
    described = asdict(profile)
    described.pop("detection")
    return described


def _find_ceiling(summary: PackSummary, profile: DeviceProfile) -> float | None:
    from device_profiles.roofline import decode_ceiling_tokens_per_s

    if profile.bandwidth_bytes_per_s is None:
        return None
    return decode_ceiling_tokens_per_s(profile.bandwidth_bytes_per_s, summary.bytes_per_token)


def _list_notes(summary: PackSummary, profile: DeviceProfile) -> list[str]:
    notes = list(summary.notes)
    if summary.weight_bytes > 0.8 * profile.memory_bytes:
        notes.append(
            f"the weights take {summary.weight_bytes / 1e9:.1f} GB, {profile.name} has"
            f" {profile.memory_bytes / 1e9:.1f} GB of memory: too little is left for the rest"
        )
    return notes


def _tabulate_summary(summary: PackSummary, profile: DeviceProfile) -> Table:
    from rich.table import Table

    ceiling = _find_ceiling(summary, profile)
    if ceiling is None or profile.bandwidth_bytes_per_s is None:
        speed = f"not known: the bandwidth of {profile.name} is not"
    else:
        speed = (
            f"at most {ceiling:.3g} tokens/s: {summary.bytes_per_token / 1e6:.1f} MB a token at"
            f" {profile.bandwidth_bytes_per_s / 1e9:.3g} GB/s ({profile.bandwidth_source})"
        )
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (
        ("bundle", str(summary.path)),
        ("model", f"{summary.model}: {summary.n_weights / 1e6:.1f} M weights in {summary.n_tensors} tensors"),
        ("device", f"{summary.device} ({profile.title})"),
        ("kernels", f"{summary.isa}, {summary.kernel_bytes / 1e3:.1f} kB; layout {summary.layout}"),
        ("size", f"{summary.bundle_bytes / 1e6:.1f} MB, {summary.bits_per_weight:.3f} bits per weight"),
        ("golden answer", "recorded" if summary.golden else "none"),
        ("decode", speed),
    ):
        table.add_row(name, value)
    return table


def _load_profiles() -> list[DeviceProfile]:
    """Every profile, and this computer's where it can be described."""
    from device_profiles.detect import detect_host
    from device_profiles.profile import list_profiles, load_profile

    profiles = [load_profile(name) for name in list_profiles()]
    try:
        profiles.append(detect_host())
    except EdgeawqError:
        return profiles  # no kernels for this computer: it cannot be packed for, so it is not in the list
    return profiles


def _tabulate_profiles(profiles: list[DeviceProfile]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (
        ("name", "left"),
        ("kernels", "left"),
        ("cores", "right"),
        ("memory", "right"),
        ("bandwidth", "right"),
        ("device", "left"),
    ):
        table.add_column(name, justify=justify, no_wrap=name != "device")  # type: ignore[arg-type]
    for profile in profiles:
        bandwidth = profile.bandwidth_bytes_per_s
        table.add_row(
            profile.name,
            profile.target.isa,
            str(profile.cores),
            f"{profile.memory_bytes / 2**30:.0f} GiB",
            f"{bandwidth / 1e9:.3g} GB/s" if bandwidth else "",
            profile.title,
        )
    return table
