"""`edgeawq profile TARGET`: measure a device, or this machine, and what a model does on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from edgeawq.cli.device_options import inventory_option
from edgeawq.errors import UsageError

if TYPE_CHECKING:
    from edgeawq.deploy.ssh_auth import AskSecret
    from edgeawq.profiling.schema import Profile

NOT_KEPT = "not kept for `edgeawq status` and `edgeawq plan`: the device is emulated"
DEFAULT_MODEL = "embedded:smollm2-135m-instruct"


@click.command(name="measure")
@click.argument("target", required=False)
@click.option("--bundle", type=click.Path(path_type=Path), metavar="BUNDLE", help="Measure a bundle on this machine.")
@click.option("--no-model", is_flag=True, help="Measure this machine only, without a model.")
@click.option("--quick", "amount", flag_value="quick", help="About a third of the time, with fewer points.")
@click.option("--thorough", "amount", flag_value="thorough", help="More points and repetitions; takes minutes.")
@click.option("--threads", type=click.IntRange(1, 64), metavar="N", help="Threads of the model; default: the fastest.")
@click.option("--json", "json_file", metavar="FILE", help="Write the document to FILE; - is standard output.")
@click.option("--html", type=click.Path(path_type=Path), metavar="PAGE", help="Write the report as one page, too.")
@click.option("--no-store", is_flag=True, help="Do not keep the profile for `edgeawq status` and comparisons.")
@click.option("--serve", is_flag=True, hidden=True, help="Talk to a host over standard input and output.")
@inventory_option
def measure(target: str | None, **options: Any) -> int:
    """Measure a device and the model on it.

    TARGET is the name of a device that something was pushed to, or a bundle's folder to measure on this machine.
    Without one, this machine and the embedded model are measured. Ctrl-C ends it early and keeps what is there.

    \b
    Example:
      edgeawq profile pi5
      edgeawq profile pi5 --json pi5.json --html pi5.html
      edgeawq profile --bundle smollm2.edgeawq --quick
    """
    if options["serve"]:
        return _serve(target, options)
    if find_spec("edgeawq.deploy") is None:
        # On a device there is no report and no place to keep profiles: the host has both.
        if options["html"] is not None:
            raise UsageError(
                "a device writes no pages", remedy="--json FILE here; `edgeawq profile show FILE --html PAGE`"
            )
        options |= {"no_store": True, "json_file": options["json_file"] or "-"}
    _check_outputs(options)
    profile = _measure(target, options)
    if not options["no_store"] and not store(profile):
        click.echo(f"edgeawq: {NOT_KEPT}", err=True)
    _show(profile, options)
    return 0 if profile.complete else 130


def store(profile: Profile) -> bool:
    """Keep a profile among those of its device; False for an emulated one, which says nothing about any board."""
    from edgeawq.deploy.cache import cache_folder
    from edgeawq.profiling.history import profile_folder, store_profile
    from edgeawq.profiling.verdict_parts import is_emulated

    if is_emulated(profile):
        return False
    store_profile(profile_folder(cache_folder("profiles"), profile.device.name), profile)
    return True


def _check_outputs(options: dict[str, Any]) -> None:
    """Raise for files that cannot be written before minutes of measuring are spent on them."""
    if options["html"] is not None:
        from edgeawq.reports.page import check_page

        check_page(options["html"])
    if options["json_file"] not in (None, "-") and not Path(options["json_file"]).absolute().parent.is_dir():
        raise UsageError(f"{options['json_file']} cannot be written: there is no such folder", remedy="make it first")


def _measure(target: str | None, options: dict[str, Any]) -> Profile:
    from edgeawq.cli.chat import find_bundle

    bundle = options["bundle"]
    if target is not None and (bundle or options["no_model"]):
        raise UsageError("TARGET does not go with --bundle or --no-model", remedy="give one of them")
    if target is not None:
        bundle = find_bundle(target, options["inventory"])
        if bundle is None:
            return measure_device_named(
                target, inventory=options["inventory"], amount=options["amount"], threads=options["threads"]
            )
    elif bundle is None and not options["no_model"]:
        bundle = _find_default()
    return _measure_here(bundle, options)


def _find_default() -> Path:
    from edgeawq.cli.console import get_error_console
    from edgeawq.cli.pipeline import build_bundle
    from edgeawq.cli.pipeline import find_bundle as find_built

    return find_built(DEFAULT_MODEL, "host") or build_bundle(DEFAULT_MODEL, "host", get_error_console())


def _measure_here(bundle: Path | None, options: dict[str, Any]) -> Profile:
    from edgeawq.cli.model_options import check_bundle_folder
    from edgeawq.profiling.measure.device import ProfileOptions, measure_device

    if bundle is not None:
        check_bundle_folder(bundle)
    with show_progress("this machine") as on_progress:
        isa, probe, missing = _build_own_probe(bundle)
        settings = ProfileOptions(
            name="host",
            isa=isa,
            probe=probe,
            probe_missing=missing,
            bundle=bundle,
            n_threads=options["threads"] or 0,
            amount=options["amount"] or "usual",
        )
        return measure_device(
            settings, on_progress=lambda progress: on_progress(progress.stage, progress.share, progress.seconds_left)
        )


def _build_own_probe(bundle: Path | None) -> tuple[str, bytes | None, str]:
    """(instruction set, probe object, why there is none) for this machine, as the bundle's kernels use it."""
    from edgeawq.errors import MissingExtraError
    from edgeawq.runtime.cpu import runnable_isas
    from edgeawq.runtime.native import choose_kernel
    from packager.manifest_reader import read_manifest

    if bundle is None:
        isas = runnable_isas()
        isa = isas[0] if isas else ""
    else:
        isa = choose_kernel(read_manifest(bundle).kernels).isa
    try:
        from device_profiles.detect import find_profile

        target = find_profile("host").target
        from cpu_kernels.build import build_probe

        return isa, build_probe(target, isa), ""
    except (MissingExtraError, ModuleNotFoundError):
        return isa, None, "numba is not installed here: pip install 'edgeawq[host]', or measure from a host"


def measure_device_named(
    name: str, *, inventory: str | None, amount: str | None, threads: int | None = None, ask: AskSecret | None = None
) -> Profile:
    """Measure a device of the inventory with the release that runs there, and show how it goes on."""
    from dataclasses import replace

    from edgeawq.deploy.connect import connect
    from edgeawq.deploy.inventory import load_inventory
    from edgeawq.deploy.remote_profile import run_remote_profile
    from edgeawq.deploy.ssh_prompt import ask_at_terminal
    from edgeawq.profiling.json_values import from_json
    from edgeawq.profiling.schema import Profile

    device = load_inventory(inventory).get(name)
    arguments = [f"--{amount}"] if amount else []
    arguments += [f"--threads={threads}"] if threads else []
    with connect(device, ask=ask or ask_at_terminal) as transport, show_progress(name) as on_progress:
        found = run_remote_profile(
            transport,
            device,
            arguments,
            _build_probe_for,
            lambda progress: on_progress(progress.stage, progress.share, progress.seconds_left),
        )
    profile = from_json(Profile, found, "")
    return replace(profile, device=replace(profile.device, name=name))


def _build_probe_for(isa: str, triple: str, cpu: str, features: tuple[str, ...]) -> bytes:
    from cpu_kernels.build import build_probe
    from device_profiles.target import Target

    return build_probe(Target(triple, cpu, features, isa), isa)


def _serve(target: str | None, options: dict[str, Any]) -> int:
    from edgeawq.profiling.measure.device import ProfileOptions
    from edgeawq.profiling.measure.wire import serve_profile

    if target is None:
        raise UsageError("--serve needs a bundle", remedy="it is for `edgeawq profile DEVICE`")
    bundle = Path(target)
    settings = ProfileOptions(
        name="device",
        bundle=bundle,
        bundle_name=bundle.resolve().parent.name,
        n_threads=options["threads"] or 0,
        amount=options["amount"] or "usual",
    )
    return serve_profile(settings, sys.stdin.buffer, sys.stdout.buffer)


def _show(profile: Profile, options: dict[str, Any]) -> None:
    from edgeawq.profiling.schema import dump_profile

    if options["html"] is not None:
        from edgeawq.cli.profile_report import write_report

        write_report([profile], options["html"])
    if options["json_file"] == "-":
        click.echo(dump_profile(profile).decode().rstrip())
        return
    if options["json_file"] is not None:
        _write(Path(options["json_file"]), dump_profile(profile))
    if find_spec("edgeawq.profiling.report_text") is None:
        return
    from edgeawq.cli.console import get_console
    from edgeawq.profiling.report_text import make_report

    get_console().print(make_report(profile))


def _write(path: Path, data: bytes) -> None:
    from edgeawq.runtime.whole_file import write_whole

    def write(file: BinaryIO) -> None:
        file.write(data)

    write_whole(path, write)


@contextmanager
def show_progress(name: str) -> Iterator[Callable[[str, float, float | None], None]]:
    """A bar on standard error with the stage and the time left; single lines where that is no terminal."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    from edgeawq.cli.console import get_error_console

    console = get_error_console()
    if not console.is_terminal:
        shown = ""

        def say(stage: str, share: float, seconds_left: float | None) -> None:
            nonlocal shown
            if stage != shown:
                console.print(f"{share:4.0%} {stage}", highlight=False, markup=False)
                shown = stage

        yield say
        return
    columns = (TextColumn("measuring {task.fields[name]}: {task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TextColumn("{task.fields[left]}"), console=console, transient=True) as progress:
        task = progress.add_task("starting", total=1.0, name=name, left="")

        def update(stage: str, share: float, seconds_left: float | None) -> None:
            left = "" if seconds_left is None else f"{describe_seconds(seconds_left)} left"
            progress.update(task, description=stage, completed=share, left=left)

        yield update


def describe_seconds(seconds: float) -> str:
    """ "40 s" or "3 min"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
