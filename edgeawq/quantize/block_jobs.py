"""Blocks as jobs for a `concurrent.futures.Executor`: on other processes or machines that see the same files.

A job carries names and numbers, no tensors: it reads the model and the activations in front of its block from files,
and writes the block into the run's work folder. Doing it twice does no harm, so it may be started again wherever its
process was lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from edgeawq.checkpoints.model import Checkpoint
from edgeawq.checkpoints.open_model import open_model
from edgeawq.quantize.activations import Activations, StoredActivations
from edgeawq.quantize.block_store import BlockStore
from edgeawq.quantize.block_task import BlockStates, quantize_block
from edgeawq.quantize.devices import choose_devices, count_threads
from edgeawq.quantize.grid import GridFormat
from edgeawq.quantize.llama import read_block
from edgeawq.quantize.methods import METHODS
from edgeawq.quantize.parallel import start_workers
from edgeawq.quantize.settings import QuantizeSettings


@dataclass(frozen=True)
class BlockJob:
    """One block to quantize."""

    model: str | Checkpoint  # a reference that `open_model` takes wherever the job runs, or the model itself
    folder: Path  # the run's work folder
    layer: int
    shape: tuple[int, int, int]  # of the activations
    forms: dict[str, GridFormat]
    settings: QuantizeSettings
    in_memory: bool  # whether activations are small enough for it
    n_threads: int
    device: str  # as `choose_devices` takes it


def run_job(job: BlockJob, device: torch.device | None = None) -> int:
    """Quantize a block into the work folder, unless it is there; the number of the block.

    device: where to compute; None for the first that the job's own words name on this machine.
    """
    device = device or choose_devices(job.device)[0]
    store = BlockStore(job.folder)
    if store.is_finished(job.layer):
        return job.layer
    checkpoint = open_model(job.model) if isinstance(job.model, str) else job.model
    learns = METHODS[job.settings.method].learns_rounding
    hidden = store.load_states("hidden", job.layer, job.shape, job.in_memory)
    quantized = hidden
    if learns and job.layer:
        quantized = store.load_states("quantized", job.layer, job.shape, job.in_memory)

    def make_room(name: str) -> Activations:
        # The float model's activations are the run's own work, and the same to the bit: these are for looking only.
        return store.make_room(f"job-{name}", job.layer + 1, job.shape, job.in_memory)

    with start_workers(count_threads(job.n_threads, device), device) as workers, torch.no_grad():
        block, outcome, behind = quantize_block(
            job.layer,
            read_block(checkpoint, job.layer, torch.float32, device),
            BlockStates(hidden, quantized),
            job.forms,
            checkpoint.config,
            job.settings,
            workers,
            make_room,
        )
    if isinstance(behind.hidden, StoredActivations):
        behind.hidden.path.unlink(missing_ok=True)
    if learns:
        store.keep_states("quantized", job.layer + 1, behind.quantized)
    store.save(job.layer, block, outcome)
    return job.layer


def run_jobs(executor: Executor, jobs: Iterator[BlockJob], n_at_once: int) -> Iterator[int]:
    """Submit jobs as they come, at most n_at_once at a time; the blocks in the order in which they are finished.

    Asking for the next job may take time: the jobs before it are at work meanwhile. The first failure is raised.
    """
    pending: set[Future[int]] = set()
    try:
        for job in jobs:
            while len(pending) >= n_at_once:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
            pending.add(executor.submit(run_job, job))
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        for future in pending:
            future.cancel()
