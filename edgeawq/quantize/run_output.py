"""What becomes of a run's blocks: the heads beside them, perplexity, and the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edgeawq.checkpoints.analysis import Analysis
from edgeawq.checkpoints.awq_folder import GEMM_VERSION, GPTQ_VERSION
from edgeawq.checkpoints.awq_gemm import BITS as GEMM_BITS
from edgeawq.checkpoints.experts import list_routers
from edgeawq.checkpoints.grid import quantize_rtn
from edgeawq.checkpoints.model import QuantizationConfig, QuantizedLinear
from edgeawq.checkpoints.write_awq import write_awq_checkpoint
from edgeawq.checkpoints.write_float import write_analysis_checkpoint
from edgeawq.quantize.block import QuantizedBlock, dequantize_block
from edgeawq.quantize.grid import dequantize_to_tensor
from edgeawq.quantize.methods import METHODS
from edgeawq.quantize.perplexity import StreamedModel, measure_perplexity, stream_model
from edgeawq.quantize.report import REPORT_FILE, EvaluationReport, QuantizationReport
from edgeawq.quantize.run import EMBEDDING, FINAL_NORM, HEAD, Progress, Run
from edgeawq.quantize.settings import QuantizeSettings


def quantize_heads(run: Run) -> dict[str, QuantizedLinear]:
    """The grids of embedding and untied head; none where they stay in float."""
    if run.settings.head_bits == 16 or METHODS[run.settings.method].keeps_channels:
        return {}
    modules = [EMBEDDING] if run.checkpoint.config.tie_word_embeddings else [EMBEDDING, HEAD]
    size = run.head_group_size
    return {
        module: quantize_rtn(run.checkpoint.tensor(f"{module}.weight"), run.settings.head_bits, size)
        for module in modules
    }


def evaluate_blocks(run: Run, text: str, chunks: torch.Tensor, grids: dict[str, QuantizedLinear]) -> EvaluationReport:
    """Perplexity of the float model, of rounding to nearest, and of the blocks in the store."""
    source = stream_model(run.checkpoint, device=run.workers.device)
    models = {"float": source, "rtn": assemble(run, run.round_block, source, grids)}
    if run.settings.method != "rtn":
        models[run.settings.method] = assemble(run, run.store.load, source, grids)
    found: dict[str, float] = {}
    for number, (name, model) in enumerate(models.items()):

        def show(done: int, total: int, name: str = name, number: int = number) -> None:
            run.on_progress(Progress("evaluate", number * total + done, len(models) * total, name))

        found[name] = measure_perplexity(model, chunks, run.workers, show).perplexity
    return EvaluationReport(text, chunks.numel(), chunks.shape[1], found)


def assemble(
    run: Run, get_block: Callable[[int], QuantizedBlock], source: StreamedModel, grids: dict[str, QuantizedLinear]
) -> StreamedModel:
    """A quantized model to walk through, from its blocks and the grids of embedding and head."""
    device = run.workers.device

    def read(module: str, plain: torch.Tensor) -> torch.Tensor:
        return dequantize_to_tensor(grids[module], torch.float32).to(device) if grids else plain.half().float()

    embedding = read(EMBEDDING, source.embedding)
    head = embedding if run.checkpoint.config.tie_word_embeddings else read(HEAD, source.head)
    return StreamedModel(
        config=source.config,
        embedding=embedding,
        final_norm=source.final_norm.half().float(),
        head=head,
        read_block=lambda layer: dequantize_block(get_block(layer), torch.float32, device),
    )


def write_blocks(
    run: Run, output: Path, grids: dict[str, QuantizedLinear], report: QuantizationReport, overwrite: bool
) -> None:
    """Write the checkpoint from the store."""
    n_layers = run.checkpoint.config.n_layers
    run.on_progress(Progress("write", 0, n_layers))
    if METHODS[run.settings.method].keeps_channels:
        write_analysis_checkpoint(
            output,
            config=run.checkpoint.config,
            tokenizer=run.checkpoint.tokenizer,
            generation_defaults=run.checkpoint.generation_defaults,
            analysis=describe_analysis(run.settings, report.bits_per_weight),
            tensors=list_floats(run, {}),
            source_config=run.checkpoint.config.extra,
            extra_files={REPORT_FILE: report.to_json()},
            overwrite=overwrite,
        )
        return
    write_awq_checkpoint(
        output,
        config=run.checkpoint.config,
        tokenizer=run.checkpoint.tokenizer,
        generation_defaults=run.checkpoint.generation_defaults,
        quantization=describe_quantization(run),
        tensors=list_floats(run, grids),
        linears=list_linears(run),
        grids=grids,
        source_config=run.checkpoint.config.extra,
        extra_files={REPORT_FILE: report.to_json()},
        overwrite=overwrite,
    )


def describe_quantization(run: Run) -> QuantizationConfig:
    """AutoAWQ's format where it has a form for the grids, GPTQ's otherwise.

    AutoAWQ's `gemm` is what most tools read, but it is 4 bits for all layers. GPTQ's version 2 has 2, 3 and 8 bits
    without waste, layers that differ, and zeros as they are.
    """
    bits = run.settings.bits
    others = {module: found for module, found in run.layer_bits.items() if found != bits}
    if not others and bits == GEMM_BITS:
        routers = tuple(list_routers(run.checkpoint.config))
        return QuantizationConfig(bits, run.group_size, True, GEMM_VERSION, modules_to_not_convert=routers)
    is_asymmetric = not run.settings.is_symmetric
    return QuantizationConfig(bits, run.group_size, is_asymmetric, GPTQ_VERSION, layer_bits=others)


def describe_analysis(settings: QuantizeSettings, bits_per_weight: float) -> Analysis:
    """What the checkpoint of a method for analysis says of itself."""
    chosen = {"activation": "by their activations", "weight-norm": "by their weights' norm", "random": "at random"}
    kept = (
        f"{100 * settings.kept_share:g} % of the input channels, chosen {chosen[settings.criterion]}, are not rounded"
    )
    return Analysis(settings.method, settings.bits, bits_per_weight, kept)


def list_floats(run: Run, grids: dict[str, QuantizedLinear]) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """Every float tensor of the checkpoint that is not on a grid, one at a time."""
    for module in (EMBEDDING, FINAL_NORM, HEAD):
        absent = module == HEAD and run.checkpoint.config.tie_word_embeddings
        if module not in grids and not absent:
            yield f"{module}.weight", run.checkpoint.tensor(f"{module}.weight")
    for layer in range(run.checkpoint.config.n_layers):
        for name, tensor in run.store.load(layer).floats.items():
            yield f"model.layers.{layer}.{name}", tensor.numpy()


def list_linears(run: Run) -> Iterator[tuple[str, QuantizedLinear]]:
    """Every quantized linear layer, one block in memory at a time."""
    n_layers = run.checkpoint.config.n_layers
    for layer in range(n_layers):
        for module, linear in run.store.load(layer).linears.items():
            yield f"model.layers.{layer}.{module}", linear
        run.on_progress(Progress("write", layer + 1, n_layers))
