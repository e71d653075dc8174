"""`edgeawq gc`: remove releases a device no longer needs, or what this computer has kept of work done."""

from __future__ import annotations

import json
import time

import click

from edgeawq.cli.device_options import break_lock_option, format_bytes, inventory_option, json_option
from edgeawq.errors import UsageError

KEEP = 2  # releases of a device
UNUSED_FOR = "30d"  # what a cache may hold


@click.command(name="gc")
@click.argument("name", default="", metavar="[NAME]")
@click.option(
    "--keep",
    type=click.IntRange(2, 1000),
    help="How many releases stay, the newest ones [2].",
)
@click.option("--cache", "is_cache", is_flag=True, help="Clean up on this computer instead of a device.")
@click.option(
    "--unused-for",
    metavar="TIME",
    help="With --cache: how long something was not used (12h, 2w) [30d].",
)
@break_lock_option
@inventory_option
@json_option
def command(
    name: str,
    keep: int | None,
    is_cache: bool,
    unused_for: str | None,
    break_lock: bool,
    inventory: str | None,
    as_json: bool,
) -> None:
    """Remove old releases from a device, and what an interrupted push has left.

    The current release, the previous one, and any that is running at this moment always stay.

    With --cache: remove from this computer's cache the bundles, the checkpoints that a push has quantized, and the
    built kernels that were not used for a time. Whatever needs them makes them again.

    \b
    Example:
      edgeawq gc pi4 --keep 2
      edgeawq gc --cache --unused-for 2w
    """
    if is_cache == bool(name):
        raise UsageError(
            "gc cleans up a device or, with --cache, this computer" + (", not both at once" if name else ""),
            remedy="edgeawq gc NAME, or edgeawq gc --cache",
        )
    if unused_for is not None and not is_cache:
        raise UsageError("--unused-for has no meaning for a device", remedy="--keep N says how many releases stay")
    if is_cache and (keep is not None or break_lock):
        raise UsageError("--keep and --break-lock have no meaning with --cache", remedy="--unused-for says what goes")
    if is_cache:
        _clean_cache(unused_for or UNUSED_FOR, as_json)
    else:
        _clean_device(name, keep or KEEP, inventory, break_lock, as_json)


def _clean_cache(unused_for: str, as_json: bool) -> None:
    from edgeawq.cli.console import get_console
    from edgeawq.deploy.cache import find_cache, list_entries, prune_cache
    from edgeawq.deploy.signing import parse_lifetime

    removed = prune_cache(parse_lifetime(unused_for), time.time())
    freed = sum(entry.size for entry in removed)
    kept = sum(entry.size for entry in list_entries())
    if as_json:
        paths = [str(entry.path.relative_to(find_cache())) for entry in removed]
        click.echo(json.dumps({"removed": paths, "freed": freed, "kept": kept}))
        return
    console = get_console()
    for entry in removed:
        days = (time.time() - entry.used_at) / 86400
        what = "left by a process that is gone" if entry.is_unfinished else f"unused for {days:.0f} days"
        path = entry.path.relative_to(find_cache())
        console.print(f"{format_bytes(entry.size):>9}  {path}, {what}", highlight=False, soft_wrap=True, markup=False)
    amount = f"{format_bytes(freed)} are free again" if removed else "nothing to remove"
    rest = f"{format_bytes(kept)} of bundles, checkpoints and kernels stay"
    console.print(f"{find_cache()}: {amount}; {rest}", highlight=False, soft_wrap=True, markup=False)


def _clean_device(name: str, keep: int, inventory: str | None, break_lock: bool, as_json: bool) -> None:
    from edgeawq.cli.console import get_console, get_error_console
    from edgeawq.deploy.audit import record_operation
    from edgeawq.deploy.connect import connect
    from edgeawq.deploy.inventory import load_inventory
    from edgeawq.deploy.releases import collect_garbage
    from edgeawq.deploy.ssh_prompt import ask_at_terminal

    device = load_inventory(inventory).get(name)
    with (
        connect(device, ask=ask_at_terminal) as transport,
        record_operation("gc", name, on_note=get_error_console().print) as audit,
    ):
        removed, freed = collect_garbage(transport, device, keep, break_lock=break_lock)
        audit["removed"] = removed
    if as_json:
        click.echo(json.dumps({"removed": removed, "freed": freed}))
        return
    names = ", ".join(removed) if removed else "no release"
    get_console().print(f"{name}: removed {names}; {format_bytes(freed)} are free again", highlight=False)
