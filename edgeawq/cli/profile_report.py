"""`edgeawq profile show` and `edgeawq profile compare`: what to do with measured profiles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeawq.cli.device_options import json_option
from edgeawq.errors import UsageError

if TYPE_CHECKING:
    from edgeawq.profiling.compare import Comparison
    from edgeawq.profiling.schema import Profile


@click.command(name="show")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), metavar="PAGE", help="Write one self-contained page instead.")
@click.option("--verdicts", is_flag=True, help="Say only what it means.")
@json_option
def show(file: Path, html: Path | None, verdicts: bool, as_json: bool) -> None:
    """Show a measured profile again: tables, a roofline, and what they mean.

    \b
    Example:
      edgeawq profile show pi5.json
      edgeawq profile show pi5.json --html pi5.html
      edgeawq profile show pi5.json --verdicts --json
    """
    from dataclasses import asdict

    from edgeawq.cli.console import get_console
    from edgeawq.profiling.history import read_profile
    from edgeawq.profiling.schema import dump_profile
    from edgeawq.profiling.verdicts import find_verdicts

    profile = read_profile(file)
    if html is not None:
        write_report([profile], html)
    if as_json:
        click.echo(
            json.dumps([asdict(verdict) for verdict in find_verdicts(profile)], indent=1)
            if verdicts
            else dump_profile(profile).decode().rstrip()
        )
    elif html is None:
        from edgeawq.profiling.report_text import make_report, make_verdicts

        get_console().print(make_verdicts(find_verdicts(profile)) if verdicts else make_report(profile))


@click.command(name="compare")
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="FILE FILE…")
@click.option(
    "--threshold",
    type=click.FloatRange(0.1, 1000.0),
    default=5.0,
    show_default=True,
    metavar="PERCENT",
    help="Smaller differences do not count.",
)
@click.option("--fail-on-regression", is_flag=True, help="End with code 1 when something became worse.")
@click.option("--html", type=click.Path(path_type=Path), metavar="PAGE", help="Write one self-contained page too.")
@json_option
@click.pass_context
def compare(
    context: click.Context,
    files: tuple[Path, ...],
    threshold: float,
    fail_on_regression: bool,
    html: Path | None,
    as_json: bool,
) -> None:
    """Put measured profiles side by side: devices, releases or settings. The first one is what others are held against.

    A difference is a regression when it is larger than the threshold and than what repetitions differ by, on the same
    kind of device.

    \b
    Example:
      edgeawq profile compare before.json after.json --fail-on-regression
      edgeawq profile compare pi4.json pi5.json
    """
    from edgeawq.cli.console import get_console
    from edgeawq.profiling.compare import compare_profiles
    from edgeawq.profiling.history import read_profile

    if len(files) < 2:
        raise UsageError("there is nothing to compare with one profile", remedy="give two files or more")
    profiles = [read_profile(file) for file in files]
    comparison = compare_profiles(profiles, [file.stem for file in files], threshold / 100)
    if html is not None:
        write_report(profiles, html, [file.stem for file in files])
    if as_json:
        click.echo(json.dumps(describe_comparison(comparison), indent=1))
    else:
        from edgeawq.profiling.report_text import make_comparison

        get_console().print(make_comparison(comparison))
    if fail_on_regression and comparison.regressions:
        context.exit(1)


def write_report(profiles: Sequence[Profile], path: Path, names: Sequence[str] = ()) -> None:
    """Write the HTML report of one or several profiles to `path`, whole or not at all."""
    from edgeawq.profiling.report_html import make_page
    from edgeawq.reports.page import write_page

    write_page(path, make_page(profiles, names=names))


def describe_comparison(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain JSON values."""
    from edgeawq.profiling.json_values import to_json

    return {
        "names": list(comparison.names),
        "is_same_device": comparison.is_same_device,
        "threshold": comparison.threshold,
        "disturbed": list(comparison.disturbed),
        "differences": {title: list(texts) for title, texts in comparison.differences},
        "rows": [
            {
                "key": row.key,
                "title": row.title,
                "unit": row.unit,
                "higher_is_better": row.higher_is_better,
                "values": [None if value is None else to_json(value) for value in row.values],
                "ratios": [row.ratio(index) for index in range(len(row.values))],
                "changes": list(row.changes),
            }
            for row in comparison.rows
        ],
        "regressions": [row.key for row in comparison.regressions],
    }
