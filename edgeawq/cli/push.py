"""`edgeawq push`: bring a model to a device and do whatever is missing for it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from edgeawq.cli.device_options import (
    PushDisplay,
    break_lock_option,
    format_bytes,
    inventory_option,
    json_option,
    timeout_option,
)

if TYPE_CHECKING:
    from edgeawq.deploy.device_facts import DeviceFacts
    from edgeawq.deploy.inventory import Device
    from edgeawq.deploy.push import PushReport


@click.command(name="push")
@click.argument("name")
@click.argument("source", default="", metavar="[MODEL|CHECKPOINT|BUNDLE]")
@click.option("--profile", default="", help="The device profile to pack for, instead of the inventory's.")
@click.option("--dry-run", is_flag=True, help="Check the device and show what would be sent; change nothing there.")
@click.option("--verify", is_flag=True, help="Hash again on the device what is there already.")
@click.option(
    "--keep", type=click.IntRange(2, 1000), help="How many releases stay on the device [inventory's `keep`, or 3]."
)
@timeout_option
@break_lock_option
@inventory_option
@json_option
def command(
    name: str,
    source: str,
    profile: str,
    dry_run: bool,
    verify: bool,
    keep: int | None,
    health_timeout_s: float,
    break_lock: bool,
    inventory: str | None,
    as_json: bool,
) -> None:
    """Bring a model to a device: quantize it, pack it, upload it, check it there, switch to it.

    A float MODEL is quantized first, a CHECKPOINT is packed for the device's profile, a BUNDLE is sent as it is.
    What was made once is kept and not made again; what the device has already is not sent again. Until the new
    release has given the right answer to its golden prompt on the device, the old one stays the running one.

    \b
    Example:
      edgeawq push pi4 embedded:smollm2-135m-instruct
      edgeawq push pi4 ./my-model-awq --dry-run
      edgeawq push localhost model.edgeawq --json
    """
    from edgeawq.cli.console import get_error_console
    from edgeawq.cli.pipeline import build_bundle, find_bundle
    from edgeawq.deploy.connect import connect
    from edgeawq.deploy.device_facts import choose_python, gather_facts
    from edgeawq.deploy.inventory import load_inventory
    from edgeawq.deploy.push import PushOptions, push
    from edgeawq.deploy.ssh_prompt import RememberedAnswers
    from edgeawq.errors import UsageError

    device = load_inventory(inventory).get(name)
    reference = source or device.model
    if not reference:
        raise UsageError(
            f"nothing to push to {name!r}: no model was named, and the inventory has none for it",
            remedy=f"edgeawq push {name} embedded:smollm2-135m-instruct",
        )
    options = PushOptions(
        health_timeout_s=health_timeout_s,
        keep=keep or device.keep,
        break_lock=break_lock,
        verify=verify,
        dry_run=dry_run,
    )
    ask = RememberedAnswers()
    report: PushReport | None = None
    with PushDisplay(get_error_console(), quiet=as_json) as display:
        # The device first: a wrong password should not show up after ten minutes of quantization.
        with connect(device, ask=ask) as transport:
            display.stage(f"checking {name}")
            facts = gather_facts(transport, device)
            choose_python(facts, device.python)
            chosen = profile or device.profile or choose_profile(device, facts)
            bundle = find_bundle(reference, chosen)
            if bundle is not None:
                report = push(transport, device, bundle, options, listener=display, facts=facts)
        if report is None:
            # Not with the connection open: quantization can take longer than a network stays up.
            display.close()
            bundle = build_bundle(reference, chosen, get_error_console(), quiet=as_json)
            ask.start_connection()
            with connect(device, ask=ask) as transport:
                report = push(transport, device, bundle, options, listener=display)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        _print(report)


def choose_profile(device: Device, facts: DeviceFacts) -> str:
    """Return the profile to pack for when the inventory names none."""
    from edgeawq.deploy.device_facts import propose_profile
    from edgeawq.errors import UsageError

    if device.is_local:
        return "host"
    detection = propose_profile(facts)
    if detection.profile is None:
        raise UsageError(
            f"no profile fits {device.name} ({detection.model}): {detection.note}",
            remedy="name one with --profile, or set `profile` in the inventory",
        )
    return detection.profile


def _print(report: PushReport) -> None:
    from edgeawq.cli.console import get_console

    console = get_console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    if report.dry_run:
        verdict = "is running already" if not report.changed else "would be pushed"
        say(f"release {report.release} {verdict} (now: {report.previous or 'nothing'})")
        say(f"{report.files_sent} of {report.files} files, {format_bytes(report.bytes_sent)} would be sent")
        return
    sent = f"{report.files_sent} of {report.files} files, {format_bytes(report.bytes_sent)} sent"
    if report.upload_s > 0 and report.bytes_sent:
        sent += f" in {report.upload_s:.1f} s ({format_bytes(report.bytes_sent / report.upload_s)}/s)"
    say(f"{sent}; the release has {format_bytes(report.total_bytes)}")
    if report.repaired:
        say(f"replaced {len(report.repaired)} damaged files: {', '.join(report.repaired[:3])}")
    speed = report.health.get("decode_tokens_per_s")
    rate = f", {speed:.1f} tokens/s" if isinstance(speed, (int, float)) else ""
    say(f"health check: golden prompt answered as expected in {report.health_s:.1f} s{rate}")
    if report.changed:
        say(f"{report.device} now runs release {report.release} (before: {report.previous or 'nothing'})")
    else:
        say(f"{report.device} runs release {report.release} already; nothing was switched")
    if report.removed_releases:
        say(f"removed old releases: {', '.join(report.removed_releases)}")
    say(f"done in {report.seconds:.1f} s. Next: edgeawq chat {report.device}")
