"""`edgeawq push`: bring a model to a device and do whatever is missing for it."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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
    from edgeawq.deploy.push import PushOptions, PushReport, SignRelease
    from edgeawq.deploy.transport import Transport
    from edgeawq.errors import EdgeawqError

T = TypeVar("T")


@click.command(name="push")
@click.argument("name")
@click.argument("source", default="", metavar="[MODEL|CHECKPOINT|BUNDLE]")
@click.option("--profile", default="", help="The device profile to pack for, instead of the inventory's.")
@click.option("--dry-run", is_flag=True, help="Check the device and show what would be sent; change nothing there.")
@click.option("--verify", is_flag=True, help="Hash and check again on the device what is there.")
@click.option(
    "--keep", type=click.IntRange(2, 1000), help="How many releases stay on the device [inventory's `keep`, or 3]."
)
@click.option("--retries", type=click.IntRange(0, 100), default=4, show_default=True, help="After a lost connection.")
@click.option("--limit-rate", metavar="RATE", help="Bytes per second to send at most: 500k, 10M [inventory's].")
@click.option("--channels", type=click.IntRange(0, 4), default=0, help="SSH channels for the upload [by distance].")
@click.option(
    "--compress",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Compress what is sent; auto: where the line is slow and it helps.",
)
@click.option("--sign-with", default="", metavar="KEY", help="The key to sign with [the one that the device trusts].")
@click.option("--expires", metavar="TIME", help="The device refuses the signature after this time: 12h, 90d.")
@click.option(
    "--measure/--no-measure",
    default=None,
    help="Measure the device afterwards, for `edgeawq status`; up to a minute [a new release, at a terminal].",
)
@click.option("--allow-downgrade", is_flag=True, help="Permit a release older than what the device has accepted.")
@timeout_option
@break_lock_option
@inventory_option
@json_option
def command(name: str, source: str, **options: Any) -> None:
    """Bring a model to a device: quantize it, pack it, upload it, check it there, switch to it.

    A float MODEL is quantized first, a CHECKPOINT is packed for the device's profile, a BUNDLE is sent as it is.
    What was made once is kept and not made again; what the device has already is not sent again, and a connection
    that is lost is made again. Until the new release has given the right answer to its golden prompt on the device,
    the old one stays the running one.

    \b
    Example:
      edgeawq push pi4 embedded:smollm2-135m-instruct
      edgeawq push pi4 ./my-model-awq --dry-run
      edgeawq push localhost model.edgeawq --json
    """
    from edgeawq.cli.console import get_error_console
    from edgeawq.cli.pipeline import build_bundle, find_bundle
    from edgeawq.deploy.audit import record_operation
    from edgeawq.deploy.device_facts import choose_python, gather_facts
    from edgeawq.deploy.inventory import load_inventory
    from edgeawq.deploy.push import PushReport, push
    from edgeawq.errors import UsageError

    device = load_inventory(options["inventory"]).get(name)
    reference = source or device.model
    if not reference:
        raise UsageError(
            f"nothing to push to {name!r}: no model was named, and the inventory has none for it",
            remedy=f"edgeawq push {name} embedded:smollm2-135m-instruct",
        )
    quiet = options["as_json"]
    settings = make_options(device, options)
    with PushDisplay(get_error_console(), quiet=quiet) as display:
        link = _Link(device, options["retries"], display)
        sign = link.make_signer(options["sign_with"], options["expires"], options["allow_downgrade"])

        def send(transport: Transport, bundle: Path, facts: DeviceFacts | None) -> PushReport:
            return push(transport, device, bundle, settings, listener=display, facts=facts, sign=sign)

        def look(transport: Transport) -> str | PushReport:
            """Push at once when the bundle is there already, else return the profile to make it for."""
            display.stage(f"checking {name}")
            facts = gather_facts(transport, device)
            choose_python(facts, device.python)
            chosen = options["profile"] or device.profile or choose_profile(device, facts)
            bundle = find_bundle(reference, chosen)
            return chosen if bundle is None else send(transport, bundle, facts)

        with record_operation("push", name, model=reference, on_note=display.note) as audit:
            # The device first: a wrong password should not show up after ten minutes of quantization.
            report = link.run(look)
            if not isinstance(report, PushReport):
                # Not with the connection open: quantization can take longer than a network stays up.
                display.close()
                bundle = build_bundle(reference, report, get_error_console(), quiet=quiet)
                report = link.run(lambda transport: send(transport, bundle, None))
            audit.update(release=report.release, bytes=report.wire_bytes, changed=report.changed)
        if not options["dry_run"] and should_measure(options["measure"], report, is_watched=display.is_watched):
            display.close()
            link.measure(options["inventory"])
    if quiet:
        click.echo(json.dumps(report.to_json()))
    else:
        _print(report)


def should_measure(wanted: bool | None, report: PushReport, *, is_watched: bool) -> bool:
    """Whether the device is measured after a push: as was asked, else where it is news and somebody is there to wait.

    An emulated device is never measured unasked: its figures are another computer's.
    """
    if wanted is not None:
        return wanted
    return is_watched and report.changed and not report.emulator


def make_options(device: Device, options: Mapping[str, Any]) -> PushOptions:
    """Return how to push, from the command line and, where it says nothing, from the inventory."""
    from edgeawq.deploy.push import PushOptions
    from edgeawq.deploy.rate_limit import RateLimiter, parse_rate
    from edgeawq.deploy.upload import UploadOptions

    rate = options["limit_rate"] or device.bandwidth_limit
    return PushOptions(
        health_timeout_s=options["health_timeout_s"],
        keep=options["keep"] or device.keep,
        break_lock=options["break_lock"],
        verify=options["verify"],
        dry_run=options["dry_run"],
        upload=UploadOptions(
            channels=options["channels"],
            # Through a pipe of this machine there is nothing to save.
            compression="never" if device.is_local and options["compress"] == "auto" else options["compress"],
            limiter=RateLimiter(parse_rate(rate)) if rate else None,
        ),
    )


class _Link:
    """Connections to one device, made again when they are lost; passwords are asked for once."""

    def __init__(self, device: Device, retries: int, display: PushDisplay) -> None:
        from edgeawq.deploy.ssh_prompt import RememberedAnswers

        self._device = device
        self._retries = retries
        self._display = display
        self._ask = RememberedAnswers()

    def run(self, work: Callable[[Transport], T]) -> T:
        """Connect and do `work`."""
        from edgeawq.deploy.connect import connect
        from edgeawq.deploy.retry import RetryPolicy, run_with_retry

        def open_connection() -> Transport:
            self._ask.start_connection()
            return connect(self._device, ask=self._ask)

        def say(failures: int, delay_s: float, error: EdgeawqError) -> None:
            self._display.upload_ended()
            self._display.note(f"{error.what}; trying again in {delay_s:.0f} s")

        policy = RetryPolicy(attempts=self._retries + 1)
        return run_with_retry(open_connection, work, policy, say, progress=lambda: self._display.sent_bytes)

    def measure(self, inventory: str | None) -> None:
        """Measure the device and keep the profile. A failure is a note: what was pushed runs all the same."""
        from edgeawq.cli.profile_measure import NOT_KEPT, measure_device_named, store
        from edgeawq.errors import EdgeawqError

        self._ask.start_connection()
        try:
            name = self._device.name
            if not store(measure_device_named(name, inventory=inventory, amount="quick", ask=self._ask)):
                self._display.note(NOT_KEPT)
        except EdgeawqError as error:
            self._display.note(f"the device could not be measured: {error.what}")

    def make_signer(self, key_name: str, expires: str | None, allow_downgrade: bool) -> SignRelease:
        """Return what signs a release for this device."""
        from edgeawq.deploy.device_trust import make_release_signer
        from edgeawq.deploy.signing import parse_lifetime

        return make_release_signer(
            self._device.name,
            ask=self._ask,
            key_name=key_name,
            allow_downgrade=allow_downgrade,
            expires_in_s=parse_lifetime(expires) if expires else None,
        )


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


def name_local_root(device: str) -> str:
    """What a command for `localhost` needs before it to find the same releases."""
    from edgeawq.deploy.inventory import LOCAL_DEVICE

    root = os.environ.get("EDGEAWQ_LOCAL_ROOT")
    return f"EDGEAWQ_LOCAL_ROOT={shlex.quote(root)} " if root and device == LOCAL_DEVICE else ""


def _print(report: PushReport) -> None:
    from edgeawq.cli.console import get_console

    console = get_console()

    def say(text: str, *, is_command: bool = False) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=is_command)

    if report.dry_run:
        verdict = "is running already" if not report.changed else "would be pushed"
        say(f"release {report.release} {verdict} (now: {report.previous or 'nothing'})")
        say(f"{report.files_sent} of {report.files} files, {format_bytes(report.bytes_sent)} would be sent")
        return
    sent = f"{report.files_sent} of {report.files} files, {format_bytes(report.bytes_sent)} sent"
    if report.upload_s > 0 and report.bytes_sent:
        sent += f" in {report.upload_s:.1f} s ({format_bytes(report.bytes_sent / report.upload_s)}/s)"
    if report.wire_bytes < 0.99 * report.bytes_sent:
        sent += f", compressed to {format_bytes(report.wire_bytes)}"
    say(f"{sent}; the release has {format_bytes(report.total_bytes)}")
    if report.copied_bytes:
        say(f"{format_bytes(report.copied_bytes)} were taken from other releases on the device")
    if report.trust.get("signed"):
        say(f"signed with {report.trust['key_name']} ({report.trust['key']}), verified by the device")
    if report.repaired:
        say(f"replaced {len(report.repaired)} damaged files: {', '.join(report.repaired[:3])}")
    speed = report.health.get("decode_tokens_per_s")
    rate = f", {speed:.1f} tokens/s" if isinstance(speed, (int, float)) else ""
    if report.health:
        say(f"health check: golden prompt answered as expected in {report.health_s:.1f} s{rate}")
    if report.changed:
        say(f"{report.device} now runs release {report.release} (before: {report.previous or 'nothing'})")
    else:
        say(f"{report.device} runs release {report.release} already; nothing was switched")
    if report.removed_releases:
        say(f"removed old releases: {', '.join(report.removed_releases)}")
    # Whole, so that it can be copied from the terminal.
    next_command = f"{name_local_root(report.device)}edgeawq chat {report.device}"
    say(f"done in {report.seconds:.1f} s. Next: {next_command}", is_command=True)
