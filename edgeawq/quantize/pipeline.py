"""From a float model to an AWQ checkpoint: calibrate, walk through the blocks, evaluate, write."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

import edgeawq
from edgeawq.checkpoints.awq_folder import GEMM_VERSION, GPTQ_VERSION
from edgeawq.checkpoints.awq_gemm import BITS as GEMM_BITS
from edgeawq.checkpoints.grid import quantize_rtn
from edgeawq.checkpoints.model import Checkpoint, QuantizationConfig, QuantizedLinear
from edgeawq.checkpoints.new_folder import check_target
from edgeawq.checkpoints.tensor_shapes import list_linear_shapes
from edgeawq.checkpoints.write_awq import is_own_checkpoint, write_awq_checkpoint
from edgeawq.errors import QuantizationError, UsageError
from edgeawq.quantize.activations import Activations, count_bytes
from edgeawq.quantize.bit_choice import BitOptions, choose_bits, measure_options
from edgeawq.quantize.block import BlockOutcome, QuantizedBlock, dequantize_block, quantize_block_rtn
from edgeawq.quantize.block_jobs import BlockJob, run_jobs
from edgeawq.quantize.block_store import BlockStore, open_store
from edgeawq.quantize.block_task import BlockStates, quantize_block, run_sequences
from edgeawq.quantize.calibration import CalibrationSet, read_calibration
from edgeawq.quantize.cluster import Cluster
from edgeawq.quantize.grid import LARGEST_F16, GridFormat, dequantize_to_tensor
from edgeawq.quantize.llama import make_rope, read_block, read_weight
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
    BITS,
    GEMM_OUTPUTS,
    GPTQ_OUTPUTS,
    QuantizeSettings,
    choose_forms,
    choose_group_size,
    choose_head_group_size,
    choose_layer_bits,
    explain_group_size,
)

ACTIVATION_BYTES = 4 << 30
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
    activation_bytes: int = ACTIVATION_BYTES,
    cluster: Cluster | None = None,
    reference: str | None = None,
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
    is_gemm = set(layer_bits.values()) == {GEMM_BITS} and settings.target_bpw is None
    outputs = GEMM_OUTPUTS if is_gemm else GPTQ_OUTPUTS
    group_size = choose_group_size(checkpoint.config, settings.group_size, outputs)
    notes = [*checkpoint.config.notes]
    note = explain_group_size(checkpoint.config, settings.group_size, group_size)
    notes += [note] if note else []
    chunks = read_evaluation_tokens(evaluation.path, checkpoint, evaluation.n_tokens) if evaluation else None
    check_vectors(checkpoint)
    key = describe_run(checkpoint, settings, group_size, calibration)
    with open_store(output, key) as store, start_workers(n_threads) as workers, torch.no_grad():
        run = Run(checkpoint, settings, layer_bits, group_size, store, workers, on_progress, activation_bytes)
        jobs = ClusterRun(cluster, reference or checkpoint, n_threads) if cluster is not None else None
        calibration_set = run.calibrate(calibration) if METHODS[settings.method].needs_text else None
        if settings.target_bpw is not None and calibration_set is not None:
            run = replace(run, layer_bits=run.choose_bits(calibration_set, settings.target_bpw))
        blocks = run.quantize_blocks(calibration_set, jobs)
        grids = run.quantize_heads()
        report = QuantizationReport(
            model=checkpoint.name,
            settings=settings,
            group_size=group_size,
            head_group_size=run.head_group_size if grids else None,
            calibration=describe_calibration(calibration_set) if calibration_set else None,
            blocks=blocks,
            evaluation=run.evaluate(evaluation.path.name, chunks, grids) if evaluation and chunks is not None else None,
            bits_per_weight=count_bits_per_weight(checkpoint.config, run.layer_bits, group_size),
            notes=tuple(notes),
        )
        run.write(output, grids, report, overwrite)
    return report


@dataclass(frozen=True)
class ClusterRun:
    """An executor for the blocks, and how its processes find the model."""

    cluster: Cluster
    model: str | Checkpoint
    n_threads: int


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
    activation_bytes: int  # that may be in memory; more are kept in files

    def calibrate(self, path: Path | None) -> CalibrationSet:
        """Calibration tokens from a file or folder, or written by the model itself; those of the run that goes on."""
        found = self.store.load_calibration() if path is None else None
        if found is None:
            found = self.find_calibration(path)
            self.store.save_calibration(found)
        return found

    def find_calibration(self, path: Path | None) -> CalibrationSet:
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

    def choose_bits(self, calibration: CalibrationSet, target: float) -> dict[str, int]:
        """Bits by module for an average, those of --bits-for as they are; the choice of the run that goes on."""
        found = self.store.load_layer_bits()
        if found is not None:
            return found
        config, settings = self.checkpoint.config, self.settings
        fixed = {module for module in self.layer_bits for pattern, _ in settings.bits_for if re.search(pattern, module)}
        options: list[BitOptions] = []
        states = self.find_states(calibration, 0).hidden
        shape = (states.shape[0], states.shape[1], states.shape[2])
        self.on_progress(Progress("measure", 0, config.n_layers))
        for layer in range(config.n_layers):
            prefix = f"model.layers.{layer}."
            forms = {
                module: tuple(replace(form, bits=bits) for bits in BITS) if prefix + module not in fixed else (form,)
                for module, form in self.choose_forms(layer).items()
            }
            behind = self.store.make_room("measured", layer, shape, self.fits(shape))
            weights = read_block(self.checkpoint, layer, torch.float32)
            seed = (settings.seed * config.n_layers + layer) * len(states)
            options += measure_options(
                prefix, states, behind, weights, forms, config, find_recipe(config), seed, self.workers
            )
            states = behind
            self.on_progress(Progress("measure", layer + 1, config.n_layers))
        n_weights = sum(rows * columns for rows, columns in list_linear_shapes(config).values())
        chosen = choose_bits(options, n_weights, target)
        self.store.save_layer_bits(chosen)
        return chosen

    def round_block(self, layer: int) -> QuantizedBlock:
        """One block rounded to nearest."""
        return quantize_block_rtn(read_block(self.checkpoint, layer, torch.float32), self.choose_forms(layer))

    def quantize_blocks(
        self, calibration: CalibrationSet | None, cluster: ClusterRun | None = None
    ) -> tuple[BlockOutcome, ...]:
        """Quantize every block that is not finished into the store; the outcomes of all, none for method rtn."""
        n_layers = self.checkpoint.config.n_layers
        done = self.store.count_finished()
        states = self.find_states(calibration, done) if calibration is not None and done < n_layers else None
        self.on_progress(Progress("quantize", done, n_layers))
        if cluster is not None and states is not None:
            self.submit_blocks(states.hidden, done, cluster)
            done = n_layers
        for layer in range(done, n_layers):
            outcome = None
            if states is None:
                self.store.save(layer, self.round_block(layer))
            else:
                outcome, states = self.quantize_block(layer, states)
            detail = "" if outcome is None else f"loss {outcome.rtn_loss:.4f} → {outcome.loss:.4f}"
            self.on_progress(Progress("quantize", layer + 1, n_layers, detail))
        found = (self.store.load_outcome(layer) for layer in range(n_layers))
        return tuple(outcome for outcome in found if outcome is not None)

    def submit_blocks(self, hidden: Activations, first: int, cluster: ClusterRun) -> None:
        """Quantize the blocks from `first` on through an executor; this process runs the float model meanwhile.

        Where a block needs what the quantized blocks before it leave behind, it waits for the one before it.
        """
        config, settings = self.checkpoint.config, self.settings
        shape = (hidden.shape[0], hidden.shape[1], hidden.shape[2])
        n_at_once = 1 if METHODS[settings.method].learns_rounding else 2 * cluster.cluster.n_workers

        def make_jobs() -> Iterator[BlockJob]:
            states = hidden
            for layer in range(first, config.n_layers):
                self.store.keep_states("hidden", layer, states)
                if not self.store.is_finished(layer):
                    forms = self.choose_forms(layer)
                    in_memory = self.fits(shape)
                    folder = self.store.folder.absolute()
                    yield BlockJob(cluster.model, folder, layer, shape, forms, settings, in_memory, cluster.n_threads)
                if layer + 1 < config.n_layers:
                    weights = read_block(self.checkpoint, layer, torch.float32)
                    rope = make_rope(config, shape[1], torch.float32)
                    behind = self.store.make_room("hidden", layer + 1, shape, self.fits(shape))
                    run_sequences(states, behind, weights, config, rope, self.workers)
                    states = behind

        done = sum(self.store.is_finished(layer) for layer in range(config.n_layers))
        for _ in run_jobs(cluster.cluster.executor, make_jobs(), n_at_once):
            done += 1
            self.on_progress(Progress("quantize", done, config.n_layers))

    def find_states(self, calibration: CalibrationSet, layer: int) -> BlockStates:
        """The activations in front of block `layer`: of the embedding, or as the run that goes on had left them."""
        shape = (*calibration.token_ids.shape, self.checkpoint.config.hidden_size)
        in_memory = self.fits(shape)
        if layer:
            hidden = self.store.load_states("hidden", layer, shape, in_memory)
            if not METHODS[self.settings.method].learns_rounding:
                return BlockStates(hidden, hidden)
            return BlockStates(hidden, self.store.load_states("quantized", layer, shape, in_memory))
        embedding = read_weight(self.checkpoint, EMBEDDING, torch.float32)
        hidden = self.store.make_room("hidden", 0, shape, in_memory)
        for number, sequence in enumerate(calibration.token_ids):
            hidden[number : number + 1] = F.embedding(sequence[None], embedding)
        return BlockStates(hidden, hidden)

    def fits(self, shape: tuple[int, int, int]) -> bool:
        """Whether activations of a shape are kept in memory: at most four of that size are alive at once."""
        return 4 * count_bytes(shape) <= self.activation_bytes

    def quantize_block(self, layer: int, states: BlockStates) -> tuple[BlockOutcome, BlockStates]:
        """Quantize one block into the store; how it came out, and the activations behind it."""
        config = self.checkpoint.config
        shape = (states.hidden.shape[0], states.hidden.shape[1], states.hidden.shape[2])

        def make_room(name: str) -> Activations:
            return self.store.make_room(name, layer + 1, shape, self.fits(shape))

        weights = read_block(self.checkpoint, layer, torch.float32)
        forms = self.choose_forms(layer)
        block, outcome, behind = quantize_block(
            layer, weights, states, forms, config, self.settings, self.workers, make_room
        )
        if layer + 1 < config.n_layers:
            self.store.keep_states("hidden", layer + 1, behind.hidden)
            if behind.quantized is not behind.hidden:
                self.store.keep_states("quantized", layer + 1, behind.quantized)
        self.store.save(layer, block, outcome)
        return outcome, behind

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


def check_vectors(checkpoint: Checkpoint) -> None:
    """Raise QuantizationError for a norm or bias that float16 cannot hold, before hours of work are spent on it."""
    linears = {f"{module}.weight" for module in list_linear_shapes(checkpoint.config)}
    for name in checkpoint.tensor_names():
        if name in linears or not name.startswith(("model.layers.", f"{FINAL_NORM}.")):
            continue
        largest = float(np.abs(checkpoint.tensor(name)).max(initial=0.0))
        if not largest <= LARGEST_F16:  # also true for NaN
            raise QuantizationError(
                f"{name} reaches {largest:.4g}; the checkpoint holds it in float16, up to {LARGEST_F16:.0f}, and "
                "without NaN or infinity",
                remedy="the checkpoint is damaged, or its norms and biases cannot be stored in float16",
            )


def describe_run(
    checkpoint: Checkpoint, settings: QuantizeSettings, group_size: int, calibration: Path | None
) -> dict[str, object]:
    """What has to be the same for finished blocks to be used again, as JSON values.

    Of the weights, those of v are compared: the smallest ones that every way of changing a model changes.
    """
    config = checkpoint.config
    digest = hashlib.sha256()
    for layer in range(config.n_layers):
        digest.update(np.ascontiguousarray(checkpoint.tensor(f"model.layers.{layer}.self_attn.v_proj.weight")).data)
    return {
        "program": edgeawq.__version__,
        "torch": torch.__version__,
        "settings": asdict(settings),
        "group_size": group_size,
        "model": {"name": checkpoint.name, "config": repr(replace(config, extra={})), "v_proj": digest.hexdigest()},
        "calibration": None if calibration is None else str(calibration.absolute()),
    }


def describe_calibration(calibration: CalibrationSet) -> CalibrationReport:
    """What the report says about the calibration text."""
    return CalibrationReport(
        source=calibration.source,
        n_documents=calibration.n_documents,
        n_tokens=calibration.n_tokens,
        n_sequences=len(calibration.token_ids),
        seqlen=calibration.token_ids.shape[1],
    )
