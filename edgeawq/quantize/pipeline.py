"""From a float model to a quantized checkpoint: calibrate, walk through the blocks, evaluate, write."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgeawq.checkpoints.analysis import refuse_analysis
from edgeawq.checkpoints.awq_gemm import BITS as GEMM_BITS
from edgeawq.checkpoints.model import Checkpoint
from edgeawq.checkpoints.new_folder import check_target
from edgeawq.checkpoints.write_awq import is_own_checkpoint
from edgeawq.errors import UsageError
from edgeawq.quantize.block_store import open_store
from edgeawq.quantize.calibration import CalibrationSet
from edgeawq.quantize.cluster import Cluster
from edgeawq.quantize.devices import choose_devices, count_threads, start_devices
from edgeawq.quantize.methods import METHODS
from edgeawq.quantize.parallel import start_workers
from edgeawq.quantize.perplexity import DEFAULT_TOKENS, read_evaluation_tokens
from edgeawq.quantize.recipe import find_recipe
from edgeawq.quantize.report import CalibrationReport, QuantizationReport, count_bits_per_weight
from edgeawq.quantize.run import ClusterRun, OnProgress, Progress, Run
from edgeawq.quantize.run_blocks import calibrate, choose_average_bits, quantize_blocks
from edgeawq.quantize.run_checks import check_vectors, describe_run
from edgeawq.quantize.run_output import evaluate_blocks, quantize_heads, write_blocks
from edgeawq.quantize.settings import (
    GEMM_OUTPUTS,
    GPTQ_OUTPUTS,
    QuantizeSettings,
    choose_group_size,
    choose_layer_bits,
    explain_group_size,
)

__all__ = ["Evaluation", "OnProgress", "Progress", "quantize_model"]

ACTIVATION_BYTES = 4 << 30


@dataclass(frozen=True)
class Evaluation:
    """A text to measure perplexity on."""

    path: Path
    n_tokens: int = DEFAULT_TOKENS


def quantize_model(
    checkpoint: Checkpoint,
    output: Path,
    settings: QuantizeSettings,
    *,
    calibration: Path | None = None,
    evaluation: Evaluation | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = lambda progress: None,
    n_threads: int = 0,
    activation_bytes: int = ACTIVATION_BYTES,
    cluster: Cluster | None = None,
    reference: str | None = None,
    device: str = "cpu",
) -> QuantizationReport:
    """Quantize a float model of the Llama family, dense or with experts, into a checkpoint at `output`; the report.

    Without `calibration` (a file or folder of text) the model writes its own text. The folder appears whole or not at
    all; the same input and seed give the same bytes, whatever the number of threads. A killed run's finished blocks are
    taken up. Blocks are quantized on `cluster` where one is given, whose processes open the model by its `reference`;
    otherwise on `device` (see `choose_devices`), side by side where these are several.
    Raises UsageError for options or
    files that make no sense, CheckpointError or QuantizationError where model or disk do not allow it.
    """
    if checkpoint.quantization is not None:
        raise UsageError(
            f"{checkpoint.name} is already quantized to {checkpoint.quantization.bits} bits",
            remedy="give the float model that it was made from",
        )
    refuse_analysis(checkpoint.config, checkpoint.name)
    find_recipe(checkpoint.config)
    check_target(output, overwrite=overwrite, is_own=is_own_checkpoint)
    layer_bits = choose_layer_bits(checkpoint.config, settings)
    is_gemm = set(layer_bits.values()) == {GEMM_BITS} and settings.target_bpw is None
    outputs = GEMM_OUTPUTS if is_gemm else GPTQ_OUTPUTS
    group_size = choose_group_size(checkpoint.config, settings.group_size, outputs)
    notes = [*checkpoint.config.notes]
    note = explain_group_size(checkpoint.config, settings.group_size, group_size)
    notes += [note] if note else []
    chunks = read_evaluation_tokens(evaluation.path, checkpoint, evaluation.n_tokens) if evaluation else None
    check_vectors(checkpoint)
    devices = choose_devices(device)
    key = describe_run(checkpoint, settings, group_size, calibration, devices[0].type)
    with (
        open_store(output, key) as store,
        start_workers(count_threads(n_threads, devices[0]), devices[0]) as workers,
        start_devices(devices) as local,
        torch.no_grad(),
    ):
        run = Run(checkpoint, settings, layer_bits, group_size, store, workers, on_progress, activation_bytes)
        jobs = None
        if cluster is not None:
            jobs = ClusterRun(cluster, reference or checkpoint, n_threads, device)
        elif local is not None:
            jobs = ClusterRun(local, checkpoint, n_threads, device)
        calibration_set = calibrate(run, calibration) if METHODS[settings.method].needs_text else None
        if settings.target_bpw is not None and calibration_set is not None:
            run = replace(run, layer_bits=choose_average_bits(run, calibration_set, settings.target_bpw))
        blocks = quantize_blocks(run, calibration_set, jobs)
        grids = quantize_heads(run)
        report = QuantizationReport(
            model=checkpoint.name,
            settings=settings,
            group_size=group_size,
            head_group_size=run.head_group_size if grids else None,
            calibration=describe_calibration(calibration_set) if calibration_set else None,
            blocks=blocks,
            evaluation=evaluate_blocks(run, evaluation.path.name, chunks, grids)
            if evaluation and chunks is not None
            else None,
            bits_per_weight=count_bits_per_weight(checkpoint.config, run.layer_bits, group_size, settings.kept_share),
            notes=tuple(notes),
        )
        write_blocks(run, output, grids, report, overwrite)
    return report


def describe_calibration(calibration: CalibrationSet) -> CalibrationReport:
    """What the report says about the calibration text."""
    return CalibrationReport(
        source=calibration.source,
        n_documents=calibration.n_documents,
        n_tokens=calibration.n_tokens,
        n_sequences=len(calibration.token_ids),
        seqlen=calibration.token_ids.shape[1],
    )
