"""Histograms of a float model's weights and of the activations that its linear layers read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from edgeawq.checkpoints.tensor_shapes import list_block_linears
from edgeawq.quantize.llama import BlockWeights, apply_linear, make_rope, run_block
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.perplexity import OnProgress, StreamedModel
from edgeawq.quantize.recipe import find_recipe

WEIGHT_LIMIT, WEIGHT_BINS = 8.0, 64  # in standard deviations of the layer; what lies beyond is in the outer bins
CHANNEL_LIMIT, CHANNEL_BINS = 8.0, 64  # in powers of two of the median channel
TINY = 1e-30


@dataclass(frozen=True)
class Histogram:
    """Counts between edges that are evenly spaced from low to high; the outer bins also hold what lies beyond."""

    low: float
    high: float
    counts: tuple[int, ...]

    @property
    def step(self) -> float:
        """Width of a bin."""
        return (self.high - self.low) / len(self.counts)


@dataclass(frozen=True)
class ModelHistograms:
    """Over all blocks of a model."""

    weights: dict[str, Histogram]  # by projection ("q_proj" …); weight over its layer's root mean square
    channels: dict[str, Histogram]  # by activation ("qkv" …); log2 of a channel's mean |x| over its layer's median


def measure_histograms(
    model: StreamedModel,
    chunks: torch.Tensor,
    workers: Workers,
    on_progress: OnProgress = lambda done, total: None,
) -> ModelHistograms:
    """Walk through a model with chunks [chunks, positions]; one block is in memory."""
    config = model.config
    pairs = find_recipe(config)
    # The same holds for the activations inside experts: "down of experts.3" counts as "down".
    readers = {pair.reader: pair.name for pair in pairs}
    kinds = {pair.name: pair.name.partition(" ")[0] for pair in pairs}
    linears = list_block_linears(config)
    rope = make_rope(config, chunks.shape[1], model.embedding.dtype)
    hidden = [F.embedding(chunk[None], model.embedding) for chunk in chunks]
    # Experts have projections of the same names, which are counted together.
    weight_counts = {module.rpartition(".")[2]: torch.zeros(WEIGHT_BINS, dtype=torch.int64) for module in linears}
    channel_counts = {kind: torch.zeros(CHANNEL_BINS, dtype=torch.int64) for kind in kinds.values()}
    for layer in range(config.n_layers):
        weights = model.read_block(layer)
        for module in linears:
            weight_counts[module.rpartition(".")[2]] += count_weights(weights[f"{module}.weight"])

        def run(state: torch.Tensor, weights: BlockWeights = weights) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            sums: dict[str, torch.Tensor] = {}

            def collect(features: torch.Tensor, block: BlockWeights, name: str) -> torch.Tensor:
                if name in readers:
                    sums[readers[name]] = features[0].abs().sum(0)  # [in_features]
                return apply_linear(features, block, name)

            return run_block(state, weights, config, rope, linear=collect), sums

        results = workers.run(run, hidden)
        hidden = [output for output, _ in results]
        for activation, kind in kinds.items():
            total = torch.stack([sums[activation] for _, sums in results]).sum(0)
            if bool(total.any()):  # an expert may have seen no token
                channel_counts[kind] += count_channels(total)
        on_progress(layer + 1, config.n_layers)
    return ModelHistograms(
        {
            name: Histogram(-WEIGHT_LIMIT, WEIGHT_LIMIT, tuple(counts.tolist()))
            for name, counts in weight_counts.items()
        },
        {
            name: Histogram(-CHANNEL_LIMIT, CHANNEL_LIMIT, tuple(counts.tolist()))
            for name, counts in channel_counts.items()
        },
    )


def count_weights(weight: torch.Tensor) -> torch.Tensor:
    """Histogram [WEIGHT_BINS] of a weight in units of its root mean square."""
    rms = float(weight.square().mean(dtype=torch.float64)) ** 0.5
    edge = WEIGHT_LIMIT * (1 - 1e-6)
    return torch.histc((weight / max(rms, TINY)).clamp_(-edge, edge), WEIGHT_BINS, -WEIGHT_LIMIT, WEIGHT_LIMIT).long()


def count_channels(sums: torch.Tensor) -> torch.Tensor:
    """Histogram [CHANNEL_BINS] of log2 of Σ|x| per channel over the median channel's."""
    ratios = (sums.clamp(min=TINY) / sums.median().clamp(min=TINY)).log2()
    edge = CHANNEL_LIMIT * (1 - 1e-6)
    return torch.histc(ratios.clamp_(-edge, edge), CHANNEL_BINS, -CHANNEL_LIMIT, CHANNEL_LIMIT).long()
