"""What calibration tells about one block: the statistics that turn every linear layer into a small problem.

The error that rounding W to W' leaves in a layer's output is Σ_t |x_t (W - W')ᵀ|², which needs no tokens once
H = XᵀX is known. To count what reaches the end of the block rather than the end of the layer, tokens and output rows
are weighted by how strongly the block's output reacts to them: a random ±1 vector, sent backwards through the block,
gives at every linear output a gradient whose square is, in expectation, that sensitivity (Hutchinson's estimate of the
diagonal of JᵀJ). The output's error counts relative to the token's norm there, because the next block normalizes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.quantize.llama import LINEARS, BlockWeights, RopeTables, apply_linear, run_block
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.recipe import ScalePair


@dataclass(frozen=True)
class LayerStatistics:
    """Of one linear layer, over all calibration tokens."""

    gram: torch.Tensor  # [in_features, in_features] Σ_t c_t x_t x_tᵀ, c_t: sensitivity of the token, 1 on average
    row_weights: torch.Tensor  # [out_features] mean squared sensitivity of the block's output to the row


@dataclass(frozen=True)
class BlockStatistics:
    """Of one block: per linear layer, and mean |x| of the activation that each scale pair reads."""

    layers: dict[str, LayerStatistics]  # by module inside the block
    mean_abs: dict[str, torch.Tensor]  # by pair name, [in_features]


@dataclass(frozen=True)
class ObservationTask:
    """Some sequences [sequences, seqlen, hidden_size] and the seed of their random vector."""

    hidden: torch.Tensor
    seed: int


def observe_block(
    hidden: torch.Tensor,
    weights: BlockWeights,
    config: ModelConfig,
    rope: RopeTables,
    pairs: tuple[ScalePair, ...],
    seed: int,
    workers: Workers,
) -> tuple[torch.Tensor, BlockStatistics]:
    """Run hidden [sequences, seqlen, hidden_size] through a float block; its output and the block's statistics."""
    tasks = [ObservationTask(hidden[i : i + 1], seed + i) for i in range(len(hidden))]
    grams: dict[str, torch.Tensor] = {}
    row_sums: dict[str, torch.Tensor] = {}
    abs_sums: dict[str, torch.Tensor] = {}
    outputs: list[torch.Tensor] = []
    sensitivity_sums = dict.fromkeys(LINEARS, 0.0)
    # A round per core keeps few sums in memory at a time, and the order of addition fixed.
    for first in range(0, len(tasks), workers.count):
        for output, parts in workers.run(
            lambda task: observe_sequences(task, weights, config, rope, pairs), tasks[first : first + workers.count]
        ):
            outputs.append(output)
            for module, part in parts.layers.items():
                add_to(grams, module, part.gram)
                add_to(row_sums, module, part.row_weights)
                sensitivity_sums[module] += float(part.row_weights.mean())
            for name, part_sum in parts.mean_abs.items():
                add_to(abs_sums, name, part_sum)
    n_tokens = hidden.shape[0] * hidden.shape[1]
    layers = {}
    for module in LINEARS:
        # Σ_t of the mean square over rows is the sum over rows over their number: dividing makes c_t 1 on average.
        mean = max(sensitivity_sums[module] / n_tokens, 1e-30)
        layers[module] = LayerStatistics(grams[module].div_(mean), row_sums[module].div_(n_tokens))
    return torch.cat(outputs), BlockStatistics(layers, {name: total / n_tokens for name, total in abs_sums.items()})


def add_to(sums: dict[str, torch.Tensor], name: str, part: torch.Tensor) -> None:
    """sums[name] += part, starting from nothing."""
    if name in sums:
        sums[name] += part
    else:
        sums[name] = part


def observe_sequences(
    task: ObservationTask,
    weights: BlockWeights,
    config: ModelConfig,
    rope: RopeTables,
    pairs: tuple[ScalePair, ...],
) -> tuple[torch.Tensor, BlockStatistics]:
    """Block output of some sequences, and sums (not means) over their tokens."""
    inputs: dict[str, torch.Tensor] = {}
    probes: dict[str, torch.Tensor] = {}

    def probe(features: torch.Tensor, block: BlockWeights, module: str) -> torch.Tensor:
        # Adding a zero that wants a gradient shows how the block's output reacts to this layer's.
        inputs[module] = features.detach()
        output = apply_linear(features, block, module)
        probes[module] = torch.zeros_like(output, requires_grad=True)
        return output + probes[module]

    with torch.enable_grad():
        output = run_block(task.hidden, weights, config, rope, linear=probe)
        generator = torch.Generator().manual_seed(task.seed)
        signs = torch.randint(0, 2, output.shape, generator=generator).to(output.dtype).mul_(2).sub_(1)
        norms = output.detach().norm(dim=-1, keepdim=True).clamp_(min=1e-20)
        gradients = torch.autograd.grad(output, list(probes.values()), signs / norms)
    squared = {
        module: gradient.flatten(0, 1).square_()  # [tokens, out_features]
        for module, gradient in zip(probes, gradients, strict=True)
    }
    layers: dict[str, LayerStatistics] = {}
    for pair in pairs:
        features = inputs[pair.linears[0]].flatten(0, 1)  # [tokens, in_features]
        per_token = {module: squared[module].mean(1) for module in pair.linears}
        if pair.weighs_tokens_alike:
            shared = compute_gram(features, torch.stack([c / c.sum() for c in per_token.values()]).sum(0))
        for module in pair.linears:
            gram = shared if pair.weighs_tokens_alike else compute_gram(features, per_token[module])
            layers[module] = LayerStatistics(gram, squared[module].sum(0))
    abs_sums = {pair.name: inputs[pair.linears[0]].abs().sum((0, 1)) for pair in pairs}
    return output.detach(), BlockStatistics(layers, abs_sums)
