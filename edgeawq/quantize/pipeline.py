"""From a float model to an AWQ checkpoint: calibrate, walk through the blocks, evaluate, write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from edgeawq.checkpoints.awq_folder import GEMM_VERSION, GPTQ_VERSION
from edgeawq.checkpoints.awq_gemm import BITS as GEMM_BITS
from edgeawq.checkpoints.grid import quantize_rtn
from edgeawq.checkpoints.model import Checkpoint, QuantizationConfig, QuantizedLinear
from edgeawq.checkpoints.new_folder import check_target
from edgeawq.checkpoints.write_awq import is_own_checkpoint, write_awq_checkpoint
from edgeawq.errors import UsageError
from edgeawq.quantize.block import BlockOutcome, QuantizedBlock, dequantize_block, quantize_block_rtn
from edgeawq.quantize.block_store import BlockStore, open_store
from edgeawq.quantize.block_task import BlockStates, quantize_block
from edgeawq.quantize.calibration import CalibrationSet, read_calibration
from edgeawq.quantize.grid import GridFormat, dequantize_to_tensor
from edgeawq.quantize.llama import read_block, read_weight
from edgeawq.quantize.methods import METHODS
from edgeawq.quantize.parallel import Workers, start_workers
from edgeawq.quantize.perplexity import (
    DEFAULT_TOKENS,
    StreamedModel,
    measure_perplexity,
    read_evaluation_tokens,
    stream_model,
)
from edgeawq.quantize.recipe import find_recipe
from edgeawq.quantize.report import (
    REPORT_FILE,
    CalibrationReport,
    EvaluationReport,
    QuantizationReport,
    count_bits_per_weight,
)
from edgeawq.quantize.self_text import write_calibration
from edgeawq.quantize.settings import (
    GEMM_OUTPUTS,
    GPTQ_OUTPUTS,
    QuantizeSettings,
    choose_forms,
    choose_group_size,
    choose_head_group_size,
    choose_layer_bits,
    explain_group_size,
)

EMBEDDING, HEAD, FINAL_NORM = "model.embed_tokens", "lm_head", "model.norm"


@dataclass(frozen=True)
class Progress:
    """Where a run is: done of total in one stage, with a word on the last step."""

    stage: str  # "calibrate" | "quantize" | "evaluate" | "write"
    done: int
    total: int
    detail: str = ""


OnProgress = Callable[[Progress], None]


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
) -> QuantizationReport:
    """Quantize a float model of the Llama family into an AutoAWQ checkpoint at `output`, and say how it went.

    Without `calibration` (a file or folder of text) the model writes its own text. The folder appears whole or not at
    all; the same input and seed give the same bytes, whatever the number of threads. Raises UsageError for options or
    files that make no sense, CheckpointError or QuantizationError where model or disk do not allow it.
    """
    if checkpoint.quantization is not None:
        raise UsageError(
            f"{checkpoint.name} is already quantized to {checkpoint.quantization.bits} bits",
            remedy="give the float model that it was made from",
        )
    find_recipe(checkpoint.config)
    check_target(output, overwrite=overwrite, is_own=is_own_checkpoint)
    layer_bits = choose_layer_bits(checkpoint.config, settings)
    is_gemm = set(layer_bits.values()) == {GEMM_BITS}
    outputs = GEMM_OUTPUTS if is_gemm else GPTQ_OUTPUTS
    group_size = choose_group_size(checkpoint.config, settings.group_size, outputs)
    notes = [*checkpoint.config.notes]
    note = explain_group_size(checkpoint.config, settings.group_size, group_size)
    notes += [note] if note else []
    chunks = read_evaluation_tokens(evaluation.path, checkpoint, evaluation.n_tokens) if evaluation else None
    with open_store(output) as store, start_workers(n_threads) as workers, torch.no_grad():
        run = Run(checkpoint, settings, layer_bits, group_size, store, workers, on_progress)
        calibration_set = run.calibrate(calibration) if METHODS[settings.method].needs_text else None
        blocks = run.quantize_blocks(calibration_set)
        grids = run.quantize_heads()
        report = QuantizationReport(
            model=checkpoint.name,
            settings=settings,
            group_size=group_size,
            head_group_size=run.head_group_size if grids else None,
            calibration=describe_calibration(calibration_set) if calibration_set else None,
            blocks=blocks,
            evaluation=run.evaluate(evaluation.path.name, chunks, grids) if evaluation and chunks is not None else None,
            bits_per_weight=count_bits_per_weight(checkpoint.config, layer_bits, group_size),
            notes=tuple(notes),
        )
        run.write(output, grids, report, overwrite)
    return report


@dataclass(frozen=True)
class Run:
    """One quantization in progress: what its stages share."""

    checkpoint: Checkpoint
    settings: QuantizeSettings
    layer_bits: dict[str, int]  # by module
    group_size: int
    store: BlockStore
    workers: Workers
    on_progress: OnProgress

    def calibrate(self, path: Path | None) -> CalibrationSet:
        """Calibration tokens from a file or folder, or written by the model itself."""
        settings = self.settings
        seqlen = min(settings.seqlen, self.checkpoint.config.max_position_embeddings)
        if path is not None:
            return read_calibration(path, self.checkpoint, settings.calibration_tokens, seqlen, settings.seed)
        return write_calibration(
            self.checkpoint,
            settings.calibration_tokens,
            seqlen,
            settings.seed,
            self.workers,
            lambda done, total: self.on_progress(Progress("calibrate", done, total)),
        )

    @property
    def head_group_size(self) -> int:
        """The group size of embedding and head."""
        return choose_head_group_size(self.checkpoint.config, self.group_size)

    def choose_forms(self, layer: int) -> dict[str, GridFormat]:
        """The grids of one block's layers."""
        return choose_forms(layer, self.layer_bits, self.checkpoint.config, self.settings, self.group_size)

    def round_block(self, layer: int) -> QuantizedBlock:
        """One block rounded to nearest."""
        return quantize_block_rtn(read_block(self.checkpoint, layer, torch.float32), self.choose_forms(layer))

    def quantize_blocks(self, calibration: CalibrationSet | None) -> tuple[BlockOutcome, ...]:
        """Quantize every block into the store; the outcomes, none for method rtn."""
        outcomes: list[BlockOutcome] = []
        n_layers = self.checkpoint.config.n_layers
        states = None
        if calibration is not None:
            hidden = F.embedding(calibration.token_ids, read_weight(self.checkpoint, EMBEDDING, torch.float32))
            states = BlockStates(hidden, hidden)
        self.on_progress(Progress("quantize", 0, n_layers))
        for layer in range(n_layers):
            detail = ""
            if states is None:
                self.store.save(layer, self.round_block(layer))
            else:
                weights = read_block(self.checkpoint, layer, torch.float32)
                block, outcome, states = quantize_block(
                    layer,
                    weights,
                    states,
                    self.choose_forms(layer),
                    self.checkpoint.config,
                    self.settings,
                    self.workers,
                )
                self.store.save(layer, block)
                outcomes.append(outcome)
                detail = f"loss {outcome.rtn_loss:.4f} → {outcome.loss:.4f}"
            self.on_progress(Progress("quantize", layer + 1, n_layers, detail))
        return tuple(outcomes)

    def quantize_heads(self) -> dict[str, QuantizedLinear]:
        """The grids of embedding and untied head; none where they stay in float."""
        if self.settings.head_bits == 16:
            return {}
        modules = [EMBEDDING] if self.checkpoint.config.tie_word_embeddings else [EMBEDDING, HEAD]
        size = self.head_group_size
        return {
            module: quantize_rtn(self.checkpoint.tensor(f"{module}.weight"), self.settings.head_bits, size)
            for module in modules
        }

    def evaluate(self, text: str, chunks: torch.Tensor, grids: dict[str, QuantizedLinear]) -> EvaluationReport:
        """Perplexity of the float model, of rounding to nearest, and of the blocks in the store."""
        source = stream_model(self.checkpoint)
        models = {"float": source, "rtn": self.assemble(self.round_block, source, grids)}
        if self.settings.method != "rtn":
            models[self.settings.method] = self.assemble(self.store.load, source, grids)
        found: dict[str, float] = {}
        for number, (name, model) in enumerate(models.items()):

            def show(done: int, total: int, name: str = name, number: int = number) -> None:
                self.on_progress(Progress("evaluate", number * total + done, len(models) * total, name))

            found[name] = measure_perplexity(model, chunks, self.workers, show).perplexity
        return EvaluationReport(text, chunks.numel(), chunks.shape[1], found)

    def assemble(
        self, get_block: Callable[[int], QuantizedBlock], source: StreamedModel, grids: dict[str, QuantizedLinear]
    ) -> StreamedModel:
        """A quantized model to walk through, from its blocks and the grids of embedding and head."""
        embedding = dequantize_to_tensor(grids[EMBEDDING], torch.float32) if grids else source.embedding.half().float()
        if self.checkpoint.config.tie_word_embeddings:
            head = embedding
        else:
            head = dequantize_to_tensor(grids[HEAD], torch.float32) if grids else source.head.half().float()
        return StreamedModel(
            config=source.config,
            embedding=embedding,
            final_norm=source.final_norm.half().float(),
            head=head,
            read_block=lambda layer: dequantize_block(get_block(layer), torch.float32),
        )

    def write(
        self, output: Path, grids: dict[str, QuantizedLinear], report: QuantizationReport, overwrite: bool
    ) -> None:
        """Write the checkpoint from the store."""
        n_layers = self.checkpoint.config.n_layers
        self.on_progress(Progress("write", 0, n_layers))
        write_awq_checkpoint(
            output,
            config=self.checkpoint.config,
            tokenizer=self.checkpoint.tokenizer,
            generation_defaults=self.checkpoint.generation_defaults,
            quantization=self.describe_quantization(),
            tensors=self.list_floats(grids),
            linears=self.list_linears(),
            grids=grids,
            source_config=self.checkpoint.config.extra,
            extra_files={REPORT_FILE: report.to_json()},
            overwrite=overwrite,
        )

    def describe_quantization(self) -> QuantizationConfig:
        """AutoAWQ's format where it has a form for the grids, GPTQ's otherwise.

        AutoAWQ's `gemm` is what most tools read, but it is 4 bits for all layers. GPTQ's version 2 has 2, 3 and 8 bits
        without waste, layers that differ, and zeros as they are.
        """
        bits = self.settings.bits
        others = {module: found for module, found in self.layer_bits.items() if found != bits}
        if not others and bits == GEMM_BITS:
            return QuantizationConfig(bits, self.group_size, zero_point=True, version=GEMM_VERSION)
        is_asymmetric = not self.settings.is_symmetric
        return QuantizationConfig(bits, self.group_size, is_asymmetric, GPTQ_VERSION, layer_bits=others)

    def list_floats(self, grids: dict[str, QuantizedLinear]) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
        """Every float tensor of the checkpoint that is not on a grid, one at a time."""
        for module in (EMBEDDING, FINAL_NORM, HEAD):
            absent = module == HEAD and self.checkpoint.config.tie_word_embeddings
            if module not in grids and not absent:
                yield f"{module}.weight", self.checkpoint.tensor(f"{module}.weight")
        for layer in range(self.checkpoint.config.n_layers):
            for name, tensor in self.store.load(layer).floats.items():
                yield f"model.layers.{layer}.{name}", tensor.numpy()

    def list_linears(self) -> Iterator[tuple[str, QuantizedLinear]]:
        """Every quantized linear layer, one block in memory at a time."""
        n_layers = self.checkpoint.config.n_layers
        for layer in range(n_layers):
            for module, linear in self.store.load(layer).linears.items():
                yield f"model.layers.{layer}.{module}", linear
            self.on_progress(Progress("write", layer + 1, n_layers))


def describe_calibration(calibration: CalibrationSet) -> CalibrationReport:
    """What the report says about the calibration text."""
    return CalibrationReport(
        source=calibration.source,
        n_documents=calibration.n_documents,
        n_tokens=calibration.n_tokens,
        n_sequences=len(calibration.token_ids),
        seqlen=calibration.token_ids.shape[1],
    )
