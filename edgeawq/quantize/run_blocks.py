"""The blocks of a run: calibration text, bits by layer, and every block into the work folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from edgeawq.checkpoints.tensor_shapes import list_linear_shapes
from edgeawq.quantize.activations import Activations
from edgeawq.quantize.bit_choice import BitOptions, choose_bits, measure_options
from edgeawq.quantize.block import BlockOutcome
from edgeawq.quantize.block_jobs import BlockJob, run_jobs
from edgeawq.quantize.block_task import BlockStates, quantize_block, run_sequences
from edgeawq.quantize.calibration import CalibrationSet, read_calibration
from edgeawq.quantize.llama import make_rope, read_block, read_weight
from edgeawq.quantize.methods import METHODS
from edgeawq.quantize.recipe import find_recipe
from edgeawq.quantize.run import EMBEDDING, ClusterRun, Progress, Run
from edgeawq.quantize.self_text import write_calibration
from edgeawq.quantize.settings import BITS


def calibrate(run: Run, path: Path | None) -> CalibrationSet:
    """Calibration tokens from a file or folder, or written by the model itself; those of the run that goes on."""
    found = run.store.load_calibration() if path is None else None
    if found is None:
        found = find_calibration(run, path)
        run.store.save_calibration(found)
    return found


def find_calibration(run: Run, path: Path | None) -> CalibrationSet:
    """Calibration tokens from a file or folder, or written by the model itself."""
    settings = run.settings
    seqlen = min(settings.seqlen, run.checkpoint.config.max_position_embeddings)
    if path is not None:
        return read_calibration(path, run.checkpoint, settings.calibration_tokens, seqlen, settings.seed)
    return write_calibration(
        run.checkpoint,
        settings.calibration_tokens,
        seqlen,
        settings.seed,
        run.workers,
        lambda done, total: run.on_progress(Progress("calibrate", done, total)),
    )


def choose_average_bits(run: Run, calibration: CalibrationSet, target: float) -> dict[str, int]:
    """Bits by module for an average, those of --bits-for as they are; the choice of the run that goes on."""
    found = run.store.load_layer_bits()
    if found is not None:
        return found
    config, settings = run.checkpoint.config, run.settings
    fixed = {module for module in run.layer_bits for pattern, _ in settings.bits_for if re.search(pattern, module)}
    options: list[BitOptions] = []
    states = find_states(run, calibration, 0).hidden
    shape = (states.shape[0], states.shape[1], states.shape[2])
    run.on_progress(Progress("measure", 0, config.n_layers))
    for layer in range(config.n_layers):
        prefix = f"model.layers.{layer}."
        forms = {
            module: tuple(replace(form, bits=bits) for bits in BITS) if prefix + module not in fixed else (form,)
            for module, form in run.choose_forms(layer).items()
        }
        behind = run.store.make_room("measured", layer, shape, run.fits(shape))
        weights = read_block(run.checkpoint, layer, torch.float32, run.workers.device)
        seed = (settings.seed * config.n_layers + layer) * len(states)
        options += measure_options(
            prefix, states, behind, weights, forms, config, find_recipe(config), seed, run.workers
        )
        states = behind
        run.on_progress(Progress("measure", layer + 1, config.n_layers))
    n_weights = sum(rows * columns for rows, columns in list_linear_shapes(config).values())
    chosen = choose_bits(options, n_weights, target)
    run.store.save_layer_bits(chosen)
    return chosen


def quantize_blocks(
    run: Run, calibration: CalibrationSet | None, cluster: ClusterRun | None = None
) -> tuple[BlockOutcome, ...]:
    """Quantize every block that is not finished into the store; the outcomes of all, none for method rtn."""
    n_layers = run.checkpoint.config.n_layers
    done = run.store.count_finished()
    states = find_states(run, calibration, done) if calibration is not None and done < n_layers else None
    run.on_progress(Progress("quantize", done, n_layers))
    if cluster is not None and states is not None:
        submit_blocks(run, states.hidden, done, cluster)
        done = n_layers
    for layer in range(done, n_layers):
        outcome = None
        if states is None:
            run.store.save(layer, run.round_block(layer))
        else:
            outcome, states = quantize_one(run, layer, states)
        detail = "" if outcome is None else f"loss {outcome.rtn_loss:.4f} → {outcome.loss:.4f}"
        run.on_progress(Progress("quantize", layer + 1, n_layers, detail))
    found = (run.store.load_outcome(layer) for layer in range(n_layers))
    return tuple(outcome for outcome in found if outcome is not None)


def submit_blocks(run: Run, hidden: Activations, first: int, cluster: ClusterRun) -> None:
    """Quantize the blocks from `first` on through an executor; this process runs the float model meanwhile.

    Where a block needs what the quantized blocks before it leave behind, it waits for the one before it.
    """
    config, settings = run.checkpoint.config, run.settings
    shape = (hidden.shape[0], hidden.shape[1], hidden.shape[2])
    n_at_once = 1 if METHODS[settings.method].learns_rounding else 2 * cluster.cluster.n_workers

    def make_jobs() -> Iterator[BlockJob]:
        states = hidden
        for layer in range(first, config.n_layers):
            run.store.keep_states("hidden", layer, states)
            if not run.store.is_finished(layer):
                forms = run.choose_forms(layer)
                in_memory = run.fits(shape)
                folder = run.store.folder.absolute()
                yield BlockJob(
                    cluster.model, folder, layer, shape, forms, settings, in_memory, cluster.n_threads, cluster.device
                )
            if layer + 1 < config.n_layers:
                weights = read_block(run.checkpoint, layer, torch.float32, run.workers.device)
                rope = make_rope(config, shape[1], torch.float32, device=run.workers.device)
                behind = run.store.make_room("hidden", layer + 1, shape, run.fits(shape))
                run_sequences(states, behind, weights, config, rope, run.workers)
                states = behind

    done = sum(run.store.is_finished(layer) for layer in range(config.n_layers))
    for _ in run_jobs(cluster.cluster.executor, make_jobs(), n_at_once):
        done += 1
        run.on_progress(Progress("quantize", done, config.n_layers))


def find_states(run: Run, calibration: CalibrationSet, layer: int) -> BlockStates:
    """The activations in front of block `layer`: of the embedding, or as the run that goes on had left them."""
    shape = (*calibration.token_ids.shape, run.checkpoint.config.hidden_size)
    in_memory = run.fits(shape)
    if layer:
        hidden = run.store.load_states("hidden", layer, shape, in_memory)
        if not METHODS[run.settings.method].learns_rounding:
            return BlockStates(hidden, hidden)
        return BlockStates(hidden, run.store.load_states("quantized", layer, shape, in_memory))
    embedding = read_weight(run.checkpoint, EMBEDDING, torch.float32)
    hidden = run.store.make_room("hidden", 0, shape, in_memory)
    for number, sequence in enumerate(calibration.token_ids):
        hidden[number : number + 1] = F.embedding(sequence[None], embedding)
    return BlockStates(hidden, hidden)


def quantize_one(run: Run, layer: int, states: BlockStates) -> tuple[BlockOutcome, BlockStates]:
    """Quantize one block into the store; how it came out, and the activations behind it."""
    config = run.checkpoint.config
    shape = (states.hidden.shape[0], states.hidden.shape[1], states.hidden.shape[2])

    def make_room(name: str) -> Activations:
        return run.store.make_room(name, layer + 1, shape, run.fits(shape))

    weights = read_block(run.checkpoint, layer, torch.float32, run.workers.device)
    forms = run.choose_forms(layer)
    block, outcome, behind = quantize_block(layer, weights, states, forms, config, run.settings, run.workers, make_room)
    if layer + 1 < config.n_layers:
        run.store.keep_states("hidden", layer + 1, behind.hidden)
        if behind.quantized is not behind.hidden:
            run.store.keep_states("quantized", layer + 1, behind.quantized)
    run.store.save(layer, block, outcome)
    return outcome, behind
