"""What calibration tells about one block: the statistics that turn every linear layer into a small problem.

The error that rounding W to W' leaves in a layer's output is Σ_t |x_t (W - W')ᵀ|², which needs no tokens once
H = XᵀX is known. To count what reaches the end of the block rather than the end of the layer, tokens and output rows
are weighted by how strongly the block's output reacts to them: a random ±1 vector, sent backwards through the block,
gives at every linear output a gradient whose square is, in expectation, that sensitivity (Hutchinson's estimate of the
diagonal of JᵀJ). The output's error counts relative to the token's norm there, because the next block normalizes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.errors import QuantizationError
from edgeawq.quantize.activations import Activations
from edgeawq.quantize.llama import BlockWeights, RopeTables, apply_linear, run_block
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.recipe import ScalePair

# Columns of a Gram matrix computed together; blocks below the diagonal are mirrored, not computed.
GRAM_COLUMNS = 512
TINY = 1e-30


@dataclass(frozen=True)
class LayerStatistics:
    """Of one linear layer, over all calibration tokens."""

    gram: torch.Tensor  # [in_features, in_features] Σ_t c_t x_t x_tᵀ, c_t: sensitivity of the token, 1 on average
    row_weights: torch.Tensor  # [out_features] mean squared sensitivity of the block's output to the row
    n_tokens: int  # that reached the layer: an expert sees only those that are sent to it


@dataclass(frozen=True)
class BlockStatistics:
    """Of one block: per linear layer, and mean |x| of the activation that each scale pair reads."""

    layers: dict[str, LayerStatistics]  # by module inside the block; layers may share a Gram matrix
    mean_abs: dict[str, torch.Tensor]  # by pair name, [in_features]


@dataclass
class Sums:
    """Sums over tokens, by kind and module or pair: "gram", "tokens" (Σ c_t), "rows", "count", "abs"."""

    values: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)

    def add(self, other: Sums) -> None:
        """Add another part's sums; the tensors of the first part are taken over."""
        for key, value in other.values.items():
            if key in self.values:
                self.values[key] += value
            else:
                self.values[key] = value


@dataclass(frozen=True)
class ObservationTask:
    """Some sequences [sequences, seqlen, hidden_size] and the seed of their random vector."""

    hidden: torch.Tensor
    seed: int


def observe_block(
    hidden: Activations,
    outputs: Activations,
    weights: BlockWeights,
    config: ModelConfig,
    rope: RopeTables,
    pairs: tuple[ScalePair, ...],
    seed: int,
    workers: Workers,
) -> BlockStatistics:
    """Run hidden [sequences, seqlen, hidden_size] through a float block; the block's statistics.

    The block's output goes into outputs, of the same shape. Raises QuantizationError where it is NaN or infinity.
    """
    sums = Sums()

    def observe(sequence: int) -> Sums:
        task = ObservationTask(hidden[sequence : sequence + 1].to(workers.device), seed + sequence)
        output, part = observe_sequences(task, weights, config, rope, pairs)
        if not bool(torch.isfinite(output).all()):
            raise QuantizationError(
                "a block of the float model gives NaN or infinity on the calibration text",
                remedy="the checkpoint is damaged, or it is not the model that config.json describes",
            )
        outputs[sequence : sequence + 1] = output.cpu()
        return part

    # One round of the cores at a time: few sums are in memory, and they are added in the order of the sequences.
    for first in range(0, len(hidden), workers.count):
        for part in workers.run(observe, range(first, min(first + workers.count, len(hidden)))):
            sums.add(part)
    n_tokens = hidden.shape[0] * hidden.shape[1]
    layers: dict[str, LayerStatistics] = {}
    for pair in pairs:
        shared = {module: modules[0] for modules in pair.gram_sets for module in modules}
        for module in pair.linears:
            key = shared[module]
            mean = (sums.values["tokens", key] / n_tokens).clamp(min=TINY)
            layers[module] = LayerStatistics(
                # Layers that share a Gram matrix get the same tensor.
                layers[key].gram if key in layers else sums.values["gram", key] / mean,
                sums.values["rows", module] / n_tokens,
                int(sums.values["count", module]),
            )
    return BlockStatistics(layers, {pair.name: sums.values["abs", pair.name] / n_tokens for pair in pairs})


def observe_sequences(
    task: ObservationTask,
    weights: BlockWeights,
    config: ModelConfig,
    rope: RopeTables,
    pairs: tuple[ScalePair, ...],
) -> tuple[torch.Tensor, Sums]:
    """Block output of some sequences, and the sums over their tokens."""
    inputs: dict[str, torch.Tensor] = {}
    probes: dict[str, torch.Tensor] = {}
    routers = {module for pair in pairs for module in pair.routers}

    def probe(features: torch.Tensor, block: BlockWeights, module: str) -> torch.Tensor:
        # Adding a zero that wants a gradient shows how the block's output reacts to this layer's.
        inputs[module] = features.detach()
        output = apply_linear(features, block, module)
        if module in routers:
            return output
        probes[module] = torch.zeros_like(output, requires_grad=True)
        return output + probes[module]

    with torch.enable_grad():
        output = run_block(task.hidden, weights, config, rope, linear=probe)
        generator = torch.Generator().manual_seed(task.seed)
        # Drawn in main memory, so that they are the same on every device.
        signs = torch.randint(0, 2, output.shape, generator=generator).to(output).mul_(2).sub_(1)
        norms = output.detach().norm(dim=-1, keepdim=True).clamp_(min=TINY)
        gradients = torch.autograd.grad(output, list(probes.values()), signs / norms)
    squared = {
        module: gradient.flatten(0, 1).square_()  # [tokens, out_features]
        for module, gradient in zip(probes, gradients, strict=True)
    }
    sums = Sums()
    for pair in pairs:
        sums.values["abs", pair.name] = inputs[pair.reader].flatten(0, 1).abs().sum(0)
        for module in pair.linears:
            sums.values["rows", module] = squared[module].sum(0)
            sums.values["count", module] = torch.tensor(len(squared[module]))
        for modules in pair.gram_sets:
            features = inputs[modules[0]].flatten(0, 1)  # [tokens, in_features]
            per_token = torch.stack([squared[module].mean(1) for module in modules]).mean(0)  # c_t, [tokens]
            sums.values["tokens", modules[0]] = per_token.sum()
            sums.values["gram", modules[0]] = compute_gram(features * per_token.sqrt()[:, None])
    return output.detach(), sums


def compute_gram(features: torch.Tensor) -> torch.Tensor:
    """featuresᵀ features of [tokens, in_features], symmetric to the bit; [in_features, in_features]."""
    width = features.shape[1]
    gram = features.new_empty(width, width)
    for first in range(0, width, GRAM_COLUMNS):
        last = min(first + GRAM_COLUMNS, width)
        strip = features[:, :last].T @ features[:, first:last]  # [columns so far, columns]
        gram[:last, first:last] = strip
        gram[first:last, :first] = strip[:first].T
    return gram
