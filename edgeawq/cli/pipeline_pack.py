"""Pack a checkpoint and record its golden answer: what `edgeawq pack` and `edgeawq push` have in common."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeawq.errors import KernelError, ProfileError

if TYPE_CHECKING:
    from rich.console import Console

    from device_profiles.profile import DeviceProfile
    from edgeawq.checkpoints.model import Checkpoint
    from packager.pack import PackSummary, Progress

GOLDEN_PREFIX = ".golden-"


def pack_bundle(
    reference: str,
    profile: DeviceProfile,
    output: Path,
    console: Console,
    *,
    head_bits: int | None = None,
    overwrite: bool = False,
    golden: bool = True,
    quiet: bool = False,
) -> PackSummary:
    """Pack the quantized checkpoint `reference` for `profile` into the folder `output`, with a progress bar.

    golden: also record the answer that a health check on the device compares with. It is recorded on this computer,
    from the bundle itself if this CPU can run it, else from a second bundle of the same checkpoint packed for this
    CPU; where neither runs, the summary's notes say so. quiet: no progress.
    """
    from edgeawq.checkpoints.open_model import open_model
    from packager.pack import pack_checkpoint

    checkpoint = open_model(reference)
    notes: list[str] = []
    with show_progress(console, quiet) as (progress, say):

        def record(folder: Path) -> Mapping[str, Any] | None:
            if not can_run(folder):  # its kernels are another CPU's: the same checkpoint is packed for this one
                say("packing once more for this computer")
            say("recording the golden answer")
            return record_answer(folder, checkpoint, head_bits, notes)

        say(f"packing {checkpoint.name} for {profile.name}")
        summary = pack_checkpoint(
            checkpoint,
            profile,
            output,
            head_bits=head_bits,
            progress=progress,
            overwrite=overwrite,
            golden=record if golden else None,
        )
    return replace(summary, notes=(*summary.notes, *notes))


def record_answer(
    folder: Path, checkpoint: Checkpoint, head_bits: int | None, notes: list[str]
) -> Mapping[str, Any] | None:
    """The golden answer for the bundle in `folder`; None, and a line in `notes`, where this computer cannot run it."""
    from device_profiles.detect import detect_host
    from edgeawq.runtime.golden import record_golden
    from packager.pack import pack_checkpoint

    if can_run(folder):
        return record_golden(folder)
    try:
        host = detect_host()
    except ProfileError as error:
        notes.append(f"no golden answer is recorded: {error.what}")
        return None
    # Beside the bundle, where there is room for it: /tmp is often memory.
    sweep_leftovers(folder.parent)
    with tempfile.TemporaryDirectory(prefix=f"{GOLDEN_PREFIX}{os.getpid()}-", dir=folder.parent) as scratch:
        twin = Path(scratch) / "host"
        pack_checkpoint(checkpoint, host, twin, head_bits=head_bits)
        answer = record_golden(twin)
    notes.append(f"the golden answer was recorded on this computer ({host.target.isa})")
    return answer


def sweep_leftovers(folder: Path) -> None:
    """Remove what a killed process has left of its packing for the golden answer."""
    for path in folder.glob(f"{GOLDEN_PREFIX}*"):
        pid = path.name.removeprefix(GOLDEN_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists() and Path("/proc/self").exists():
            shutil.rmtree(path, ignore_errors=True)


def can_run(folder: Path) -> bool:
    """Whether this CPU runs the kernels of the bundle in `folder`."""
    from edgeawq.runtime.native import choose_kernel
    from packager.manifest_reader import read_manifest

    try:
        choose_kernel(read_manifest(folder).kernels)
    except KernelError:
        return False
    return True


@contextmanager
def show_progress(console: Console, quiet: bool) -> Iterator[tuple[Progress | None, Any]]:
    """A bar with rate and time left, and a function that says what is going on; both silent when `quiet`.

    Where nobody watches (a pipe, a log) there is no bar, only a line for each step.
    """
    if quiet or not console.is_terminal:
        yield None, lambda text: None if quiet else console.print(text, markup=False, highlight=False)
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from packager.pack import KERNEL_STEP

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("packing", total=None)

        def update(step: str, done: int, total: int) -> None:
            title = "compiling the kernels" if step == KERNEL_STEP else "packing the weights"
            bar.update(task, description=title, completed=done, total=total)

        yield update, lambda text: bar.update(task, description=text)
