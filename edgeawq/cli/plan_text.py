"""A plan for people and for scripts."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgeawq.cli.device_options import format_bytes
from edgeawq.planning.device import Figure
from edgeawq.planning.plan import COMFORTABLE, Choice, Plan
from edgeawq.planning.predict import find_loop_ops

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ASSUMPTIONS = (
    "every weight is read from memory once a token, and once for 64 tokens of a prompt",
    "memory and arithmetic overlap; nothing else runs; the clock does not fall",
)
NO_GPU_KERNELS = "this release runs on the CPU (--processor cpu); the GPU's figures say what its memory allows"


def print_plan(console: Console, plan: Plan, model: str, *, show_all: bool) -> None:
    """Write one plan: what was assumed, the table, its notes, and the commands to go on with."""
    config, device = plan.shape.config, plan.device
    console.print(
        f"[bold]{plan.shape.name}[/] on [bold]{device.title}[/] ({device.name}, {device.processor})", highlight=False
    )
    console.print(
        f"{config.n_layers} layers of {config.hidden_size}, {_count(plan.float16_bytes / 2)} weights,"
        f" {format_bytes(plan.float16_bytes)} in float16. Context {plan.context_length:,} with a"
        f" {plan.workload.kv_bits}-bit KV cache ({format_bytes(plan.choices[0].kv_bytes)}), prompt of"
        f" {plan.workload.prompt_tokens:,} tokens.",
        highlight=False,
    )
    console.print(make_table(plan, show_all=show_all))
    console.print(make_notes(plan, show_all=show_all))
    commands = list_commands(plan, model)
    if commands:
        console.print("\n[bold]To go on[/]")
        for line in commands:
            console.print(wrap_command(line, console.width), highlight=False, markup=False, soft_wrap=True)


def wrap_command(line: str, width: int) -> str:
    """A command, indented, over as many lines as `width` needs; a shell takes them all at once."""
    kept = re.sub(r"(?<= )(--?[a-z-]+) (?!-)", "\\1\0", line)  # an option stays with its value; no space for textwrap
    indent, end = " " * 6, " \\\n"
    parts = textwrap.wrap(kept, width - len(indent) - 2, break_long_words=False, break_on_hyphens=False)
    return "  " + (end + indent).join(parts).replace("\0", " ")


def make_table(plan: Plan, *, show_all: bool) -> Table:
    """One row for each quantization; fits 80 columns."""
    from rich import box
    from rich.table import Table

    unit, size = ("GB", 1e9) if plan.choices[0].weights_bytes >= 1e9 else ("MB", 1e6)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for head in ("", "\nbits"):
        table.add_column(head, no_wrap=True)
    for head in ("bundle", "memory", "free"):
        table.add_column(f"{head}\n{unit}", justify="right", no_wrap=True)
    for head in ("\nerror", "tokens/s\nat most", "\nexpected", "1st token\nexpected"):
        table.add_column(head, justify="right", no_wrap=True)
    for choice in select_rows(plan, show_all=show_all):
        style = "bold" if choice.is_pick else "dim" if not choice.fits or not choice.can_build else ""
        free = f"{choice.headroom_bytes / size:.{2 if unit == 'GB' else 0}f}"
        table.add_row(
            ("→" if choice.is_pick else " ") + ("●" if choice.is_pareto else " ") + (" " if choice.can_build else "○"),
            str(choice.scheme).replace(", head ", " h"),
            f"{choice.download_bytes / size:.{2 if unit == 'GB' else 1}f}",
            f"{choice.memory_bytes / size:.{2 if unit == 'GB' else 0}f}",
            free if choice.fits else f"[red]{free}[/]",
            f"{100 * choice.rounding_error:.1f} %",
            _speed(choice.decode.ceiling_s),
            _speed(choice.decode.expected_s),
            _first_token(choice),
            style=style,
        )
    return table


def make_notes(plan: Plan, *, show_all: bool) -> Table:
    """The notes as a grid of words and explanations."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for word, text in list_notes(plan, show_all=show_all):
        grid.add_row(word, Text(text))
    return grid


def select_rows(plan: Plan, *, show_all: bool) -> list[Choice]:
    """The rows worth a look: an 8-bit head for every width, other heads where they can be built and are not beaten."""
    if show_all:
        return list(plan.choices)
    return [
        choice
        for choice in plan.choices
        if choice.is_pick or choice.scheme.head_bits == 8 or (choice.is_pareto and choice.can_build)
    ]


def list_notes(plan: Plan, *, show_all: bool) -> list[tuple[str, str]]:
    """What the marks mean, where the figures come from, and what was assumed: (word, explanation)."""
    device, pick = plan.device, plan.pick
    marks = "→ the usual choice   ● nothing is both faster and more exact"
    if not all(choice.can_build for choice in plan.choices):
        marks += "   ○ not with this release"
    notes = [("marks", marks)]
    if not any(choice.fits for choice in plan.choices):
        most = min(choice.memory_bytes for choice in plan.choices)
        notes.append(
            (
                "no fit",
                f"at least {format_bytes(most)} are needed, {device.name} has {format_bytes(device.memory.value)};"
                " try a shorter --context, --kv-bits 8, a smaller model, or --memory for another board",
            )
        )
    elif pick is None:
        notes.append(("no fit", "what fits cannot be made by this release; try a shorter --context or --kv-bits 8"))
    elif pick.headroom_bytes < COMFORTABLE * device.memory.value:
        notes.append(("tight", f"{pick.scheme} leaves less than a tenth of the memory free"))
    notes.append(
        (
            "memory",
            "weights, KV cache, buffers, the runtime, and"
            f" {format_bytes(device.system_memory.value)} for the system ({device.system_memory.source});"
            f" of {format_bytes(device.memory.value)} ({device.memory.source})",
        )
    )
    notes.append(("error", "expected rounding error of normally distributed weights, not of the answers"))
    notes.append(_explain_figure("bandwidth", device.bandwidth, device.name, lambda v: f"{v / 1e9:.3g} GB/s"))
    notes.append(_explain_figure("peak", device.peak_ops, device.name, _rate))
    calibrated = [choice.is_calibrated for choice in plan.choices]
    if plan.calibration is not None and any(calibrated):
        notes.append(("decode", f"from the cost of each operation, {plan.calibration.source}"))
    if not all(calibrated):
        word = "larger" if any(calibrated) else "decode"
        figure = device.decode_efficiency
        notes.append(_explain_figure(word, figure, device.name, lambda v: f"{100 * v:.0f} % of it reached"))
    notes.append(
        _explain_figure(
            "prompt", device.prefill_efficiency, device.name, lambda v: f"{100 * v:.0f} % of the peak reached"
        )
    )
    notes += _explain_loops(plan)
    notes.append(("predicted", "not measured; assumed: " + "; ".join(ASSUMPTIONS)))
    if device.processor == "gpu":
        notes.append(("GPU", NO_GPU_KERNELS))
    hidden = len(plan.choices) - len(select_rows(plan, show_all=show_all))
    if hidden:
        notes.append(("--all", f"shows {hidden} more"))
    return notes


def _explain_figure(word: str, figure: Figure | None, device: str, show: Callable[[float], str]) -> tuple[str, str]:
    if figure is None:
        return word, f"not known; `edgeawq profile {device}` measures it"
    return word, f"{show(figure.value)} ({figure.source})"


def list_commands(plan: Plan, model: str) -> list[str]:
    """The commands that lead from here to a chat; empty where nothing fits."""
    pick = plan.pick
    if pick is None:
        return []
    reference, scheme, name = plan.shape.reference or "MODEL_FOLDER", pick.scheme, plan.shape.name
    target = f"{name}-w{scheme.bits}g{scheme.group_size}"
    lines = []
    if not plan.shape.reference:
        lines.append(f"# MODEL_FOLDER: the folder of {model} with its weights")
    if plan.shape.quantization is None:
        head = "" if scheme.head_bits == 8 else f" --head-bits {scheme.head_bits}"
        lines.append(
            f"edgeawq quantize {reference} -o {target} --bits {scheme.bits} --group-size {scheme.group_size}{head}"
        )
    else:
        target = reference
    device = plan.device.name
    if device == "host":
        lines.append(f"edgeawq pack {target} --device host -o {target.rstrip('/')}.edgeawq")
        lines.append(
            f"edgeawq chat {target.rstrip('/')}.edgeawq --context-length {plan.context_length}{_kv_option(plan)}"
        )
        return lines
    lines.append(f"edgeawq device add {device} USER@ADDRESS")
    lines.append(f"edgeawq push {device} {target}")
    lines.append(f"edgeawq chat {device}")
    return lines


def describe_plan(plan: Plan, model: str) -> dict[str, Any]:
    """A plan as plain JSON values; bytes, seconds and tokens per second, null for what is not known."""
    device = plan.device
    return {
        "model": plan.shape.name,
        "device": device.name,
        "title": device.title,
        "processor": device.processor,
        "context_length": plan.context_length,
        "prompt_tokens": plan.workload.prompt_tokens,
        "kv_bits": plan.workload.kv_bits,
        "float16_bytes": plan.float16_bytes,
        "figures": {
            name: None if value is None else asdict(value)
            for name, value in vars(device).items()
            if isinstance(value, Figure) or name in ("bandwidth", "peak_ops", "decode_efficiency", "prefill_efficiency")
        },
        "loops": [asdict(loop) for loop in device.loops],
        "calibration": None if plan.calibration is None else asdict(plan.calibration),
        "assumptions": list(ASSUMPTIONS),
        "choices": [_describe_choice(choice) for choice in plan.choices],
        "pick": None if plan.pick is None else str(plan.pick.scheme),
        "commands": list_commands(plan, model),
    }


def _describe_choice(choice: Choice) -> dict[str, Any]:
    described = asdict(choice)
    decode, first = described.pop("decode"), described.pop("first_token")
    scheme = described.pop("scheme")

    def per_second(seconds: float | None) -> float | None:
        return None if seconds is None else 1 / seconds

    return {
        "name": str(choice.scheme),
        **scheme,
        **described,
        "fits": choice.fits,
        "decode_ceiling_tokens_per_s": per_second(decode["ceiling_s"]),
        "decode_expected_tokens_per_s": per_second(decode["expected_s"]),
        "decode_bound": decode["bound"],
        "time_to_first_token_ceiling_s": first["ceiling_s"],
        "time_to_first_token_expected_s": first["expected_s"],
        "prefill_bound": first["bound"],
    }


def _explain_loops(plan: Plan) -> list[tuple[str, str]]:
    """What the static analysis of the inner loops says, for the pick or the usual scheme."""
    device = plan.device
    choice = plan.pick or next((c for c in plan.choices if c.scheme.bits == 4), None)
    if not device.loops or choice is None or device.bandwidth is None:
        return []
    one = find_loop_ops(device, choice.scheme, many_tokens=False)
    many = find_loop_ops(device, choice.scheme, many_tokens=True)
    if one is None or many is None:
        return []
    needed = device.bandwidth.value / (choice.bits_per_weight / 8) * 2
    return [
        (
            "loops",
            f"{choice.scheme}: at most {_rate(one)} in decode, where this memory can feed {_rate(needed)},"
            f" and {_rate(many)} in a prompt ({device.loops[0].source}: counted, not run)",
        )
    ]


def _rate(ops: float) -> str:
    return f"{ops / 1e12:.3g} Top/s" if ops >= 1e12 else f"{ops / 1e9:.3g} Gop/s"


def _count(number: float) -> str:
    return f"{number / 1e9:.3g} billion" if number >= 1e9 else f"{number / 1e6:.0f} million"


def _kv_option(plan: Plan) -> str:
    return "" if plan.workload.kv_bits == 16 else f" --kv-bits {plan.workload.kv_bits}"


def _speed(seconds: float | None) -> str:
    return "?" if seconds is None else f"{1 / seconds:.3g}"


def _first_token(choice: Choice) -> str:
    first = choice.first_token
    if first.expected_s is not None:
        return f"{first.expected_s:.3g} s"
    return "?" if first.ceiling_s is None else f"> {first.ceiling_s:.2g} s"
