"""`edgeawq bench`: prefill and decode in tokens per second, in the manner of llama-bench."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeawq.cli.device_options import format_bytes, inventory_option
from edgeawq.errors import DeployError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeawq.profiling.measure.bench import BenchOptions, BenchRow

MAX_MANIFEST_BYTES = 16 << 20
STALL_TIMEOUT_S = 3600.0  # a device says nothing before its last row
MAX_ANSWER_BYTES = 4 << 20
COLUMNS = ("model", "size", "kernels", "threads", "test", "t/s")


@click.command("bench")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--device", "device_name", metavar="NAME", help="Run what was pushed to this device, there.")
@click.option("--prompt", "-p", default="512", show_default=True, metavar="N[,N…]", help="Prompt lengths; 0 for none.")
@click.option("--generate", "-n", default="128", show_default=True, metavar="N[,N…]", help="Tokens to write; 0: none.")
@click.option(
    "--threads", "-t", default="0", show_default=True, metavar="N[,N…]", help="Numbers of threads; 0: one for each CPU."
)
@click.option(
    "--repetitions", "-r", type=click.IntRange(1, 1000), default=5, show_default=True, metavar="N", help="Of each test."
)
@click.option(
    "--activations", type=click.Choice(["int8", "float"]), default="int8", show_default=True, help="As in edgeawq run."
)
@click.option("--kv-bits", type=click.Choice(["8", "16"]), help="Elements of the KV cache  [default: 16 with int8]")
@click.option(
    "--output",
    "-o",
    type=click.Choice(["md", "csv", "json"]),
    default="md",
    show_default=True,
    help="A Markdown table, or all figures.",
)
@inventory_option
def command(bundle: Path | None, device_name: str | None, output: str, inventory: str | None, **options: Any) -> None:
    """Measure how many tokens per second a bundle reads and writes.

    ppN reads a prompt of N tokens, tgN writes N tokens, each from an empty context. With --device the bundle that runs
    on the device is measured there; a BUNDLE given as well must be the same one.

    \b
    Example:
      edgeawq bench smollm2.edgeawq
      edgeawq bench smollm2.edgeawq -p 128,512 -n 32,128 -t 1,2,4 -o csv
      edgeawq bench --device pi5 -t 1,2,3,4
    """
    if device_name is not None:
        rows = _run_there(device_name, bundle, options, inventory)
    elif bundle is not None:
        rows = _run_here(bundle, options)
    else:
        raise UsageError("there is no bundle", remedy="give a bundle's folder, or --device NAME")
    click.echo({"md": format_markdown, "csv": format_csv, "json": format_json}[output](rows))


def read_numbers(text: str, name: str) -> tuple[int, ...]:
    """ "128,512" as numbers; 0 stands for none and is left out, but for threads. UsageError for anything else."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1]
    if min(numbers) < 0 or max(numbers) > 1 << 24 or len(numbers) > 64:
        raise UsageError(f"--{name} is {text!r}, no list of numbers", remedy="write numbers with commas: 128,512")
    return tuple(number for number in numbers if number or name == "threads")


def format_markdown(rows: Sequence[BenchRow]) -> str:
    """A table as llama-bench prints it: mean ± deviation."""
    lines = [_list_cells(row) for row in rows]
    widths = [max(len(line[index]) for line in (COLUMNS, *lines)) for index in range(len(COLUMNS))]
    numeric = {1, 3, 4, 5}

    def draw(cells: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if index in numeric else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(parts)} |"

    rule = [f"{'-' * (width - 1)}:" if index in numeric else "-" * width for index, width in enumerate(widths)]
    return "\n".join([draw(COLUMNS), draw(rule), *map(draw, lines)])


def format_csv(rows: Sequence[BenchRow]) -> str:
    """One line a row, all figures; texts are quoted where they must be."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(_flatten(rows[0])) if rows else ["model"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_flatten(row) for row in rows)
    return text.getvalue().rstrip("\n")


def format_json(rows: Sequence[BenchRow]) -> str:
    """A list of objects, as `BenchRow` has them."""
    from edgeawq.profiling.json_values import to_json

    return json.dumps([to_json(row) for row in rows], indent=1, ensure_ascii=False)


def _list_cells(row: BenchRow) -> tuple[str, ...]:
    speed = f"{row.mean_tokens_per_second:.2f} ± {row.deviation_tokens_per_second:.2f}"
    kernels = f"w{row.bits}a{8 if row.activations == 'int8' else 32} {row.isa}"
    return row.model, format_bytes(row.weights_bytes), kernels, str(row.threads), row.test, speed


def _flatten(row: BenchRow) -> dict[str, Any]:
    from edgeawq.profiling.json_values import to_json

    plain: dict[str, Any] = to_json(row)
    distribution = plain.pop("tokens_per_second")
    return {**plain, **{f"{key}_tokens_per_second": distribution[key] for key in ("median", "minimum", "maximum")},
            "repetitions": distribution["repetitions"]}  # fmt: skip


def _read_options(options: dict[str, Any]) -> BenchOptions:
    from edgeawq.profiling.measure.bench import BenchOptions

    return BenchOptions(
        prompts=read_numbers(options["prompt"], "prompt"),
        generations=read_numbers(options["generate"], "generate"),
        threads=read_numbers(options["threads"], "threads"),
        repetitions=options["repetitions"],
        activations=options["activations"],
        kv_bits=int(options["kv_bits"] or 0),
    )


def _run_here(bundle: Path, options: dict[str, Any]) -> list[BenchRow]:
    from edgeawq.cli.model_options import check_bundle_folder
    from edgeawq.profiling.measure.bench import run_bench

    check_bundle_folder(bundle)
    settings = _read_options(options)
    with show_bench_progress() as on_progress:
        return list(run_bench(bundle, settings, on_progress=on_progress))


def _run_there(name: str, bundle: Path | None, options: dict[str, Any], inventory: str | None) -> list[BenchRow]:
    from edgeawq.deploy.connect import connect
    from edgeawq.deploy.inventory import load_inventory
    from edgeawq.deploy.remote_chat import NOTHING_PUSHED
    from edgeawq.deploy.ssh_prompt import ask_at_terminal
    from edgeawq.deploy.transport import quote_words

    _read_options(options)  # refuse here what the device would refuse
    device = load_inventory(inventory).get(name)
    names = ("prompt", "generate", "threads", "repetitions", "activations", "kv_bits")
    words = [f"--{key.replace('_', '-')}={options[key]}" for key in names if options[key] is not None]
    command = (
        f"root={quote_words([device.root])}; "
        f'[ -x "$root/bin/edgeawq" ] && [ -d "$root/current/" ] || exit {NOTHING_PUSHED}; '
        f'exec sh "$root/bin/edgeawq" bench @bundle --output=json {quote_words(words)}'
    )
    with connect(device, ask=ask_at_terminal) as transport:
        if bundle is not None:
            _check_same(transport.run(_show_manifest(device.root)).stdout, bundle, name)
        done = transport.run(command, stall_timeout_s=STALL_TIMEOUT_S)
    if done.exit_code == NOTHING_PUSHED:
        raise DeployError(f"nothing has been pushed to {name!r} yet", remedy=f"edgeawq push {name} MODEL")
    if done.exit_code:
        tail = "".join(letter if letter.isprintable() else " " for letter in done.stderr.decode("utf-8", "replace"))
        raise DeployError(
            f"the benchmark on {name!r} failed: {tail[-300:].strip()}", remedy=f"edgeawq push {name} MODEL"
        )
    return parse_rows(done.stdout)


def parse_rows(data: bytes) -> list[BenchRow]:
    """The rows that a device has printed as JSON, every value checked."""
    from edgeawq.profiling.json_values import from_json, parse_text
    from edgeawq.profiling.measure.bench import BenchRow

    document = parse_text(data, "the device's answer")
    if not isinstance(document, list) or len(document) > 4096:
        raise DeployError("the device's answer is no list of results", remedy="push again, with this version")
    return [from_json(BenchRow, value, f"row {index}") for index, value in enumerate(document)]


def _show_manifest(root: str) -> str:
    from edgeawq.deploy.transport import quote_words

    return f"cat {quote_words([root])}/current/bundle/manifest.json"


def _check_same(manifest: bytes, bundle: Path, name: str) -> None:
    from packager.bundle_files import open_bundle_file
    from packager.manifest import MANIFEST_NAME

    with open_bundle_file(bundle, MANIFEST_NAME) as file:
        if file.read(MAX_MANIFEST_BYTES) != manifest:
            raise DeployError(
                f"what runs on {name!r} is not {bundle}", remedy=f"edgeawq push {name} {bundle}, or leave BUNDLE out"
            )


@contextmanager
def show_bench_progress() -> Iterator[Callable[[str, float], None]]:
    """The test that runs, on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda stage, share: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from edgeawq.cli.console import get_error_console

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=get_error_console(), transient=True) as progress:
        task = progress.add_task("starting", total=1.0)
        yield lambda stage, share: progress.update(task, description=stage, completed=share)
