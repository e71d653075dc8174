"""Experts that saw too few calibration tokens: tokens are forced through them, and what they do there is counted.

A router sends a token to the experts it likes best. On a short text some experts see hardly any, and statistics of a
handful of tokens would shape their weights to just these. Such an expert gets the tokens that its router's score likes
best for it in every sequence, on top of its own: those it would most likely see on another text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.experts import FeedForward, list_experts, list_routers
from edgeawq.quantize.activations import Activations
from edgeawq.quantize.llama import BlockWeights, RopeTables, apply_linear, run_block, run_mlp
from edgeawq.quantize.observe import BlockStatistics, LayerStatistics, compute_gram
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.recipe import name_activation

# An expert with fewer tokens than this is starved; it is also how many it then gets.
MIN_EXPERT_TOKENS = 64


@dataclass
class ForcedSums:
    """Of one starved expert, over the tokens it was given."""

    n_tokens: int
    entry_gram: torch.Tensor  # [hidden_size, hidden_size] of what gate and up read
    inner_gram: torch.Tensor  # [intermediate_size, intermediate_size] of what down reads
    inner_abs: torch.Tensor  # [intermediate_size] Σ |x| of the same


def find_starved(statistics: BlockStatistics, config: ModelConfig) -> dict[str, int]:
    """Experts with too few tokens, by name, and how many they saw."""
    seen = {part.name: statistics.layers[part.gate].n_tokens for part in list_experts(config)}
    return {name: count for name, count in seen.items() if count < MIN_EXPERT_TOKENS}


def feed_starved_experts(
    statistics: BlockStatistics,
    hidden: Activations,
    weights: BlockWeights,
    config: ModelConfig,
    rope: RopeTables,
    workers: Workers,
) -> BlockStatistics:
    """The statistics with those of starved experts taken from forced tokens; as they are where nobody starves.

    hidden [sequences, seqlen, hidden_size] is what the block was observed on. `n_tokens` stays what the expert saw.
    """
    starved = find_starved(statistics, config)
    if not starved:
        return statistics
    parts = [part for part in list_experts(config) if part.name in starved]
    per_sequence = min(-(-MIN_EXPERT_TOKENS // len(hidden)), hidden.shape[1])

    def force(sequence: int) -> list[ForcedSums]:
        one = hidden[sequence : sequence + 1].to(workers.device)
        return force_tokens(one, weights, config, rope, parts, per_sequence)

    totals: list[ForcedSums] = []
    for first in range(0, len(hidden), workers.count):
        for found in workers.run(force, range(first, min(first + workers.count, len(hidden)))):
            totals = [add(total, one) for total, one in zip(totals, found, strict=True)] if totals else found
    layers, mean_abs = dict(statistics.layers), dict(statistics.mean_abs)
    n_tokens = hidden.shape[0] * hidden.shape[1]
    for part, total in zip(parts, totals, strict=True):
        # As for other experts: Gram matrices as if all tokens had come this way, weighed by the rows' share.
        share = n_tokens / total.n_tokens
        entry = total.entry_gram * share
        for module, gram in ((part.gate, entry), (part.up, entry), (part.down, total.inner_gram * share)):
            rows = weigh_rows(statistics, module, config, starved)
            layers[module] = LayerStatistics(gram, rows, statistics.layers[module].n_tokens)
        mean_abs[name_activation(part)] = total.inner_abs / n_tokens
    return replace(statistics, layers=layers, mean_abs=mean_abs)


def force_tokens(
    hidden: torch.Tensor,
    weights: BlockWeights,
    config: ModelConfig,
    rope: RopeTables,
    parts: list[FeedForward],
    count: int,
) -> list[ForcedSums]:
    """Sums of starved experts over the `count` tokens of hidden [1, seqlen, hidden_size] that the router likes best."""
    router = next(iter(list_routers(config)))
    numbers = {part.name: number for number, part in enumerate(list_experts(config))}
    routed: list[tuple[torch.Tensor, torch.Tensor]] = []  # what the router reads and says, [tokens, …]

    def collect(features: torch.Tensor, block: BlockWeights, module: str) -> torch.Tensor:
        output = apply_linear(features, block, module)
        if module == router:
            routed.append((features[0], output[0]))
        return output

    run_block(hidden, weights, config, rope, linear=collect)
    tokens, scores = routed[0]
    found = []
    for part in parts:
        # The router's choice is by share: a score counts against the token's other scores.
        liked = scores.softmax(-1)[:, numbers[part.name]].topk(count).indices
        inner: list[torch.Tensor] = []

        def keep(
            features: torch.Tensor,
            block: BlockWeights,
            module: str,
            down: str = part.down,
            inner: list[torch.Tensor] = inner,
        ) -> torch.Tensor:
            if module == down:
                inner.append(features[0])
            return apply_linear(features, block, module)

        run_mlp(tokens[None, liked], weights, part, linear=keep)
        found.append(ForcedSums(count, compute_gram(tokens[liked]), compute_gram(inner[0]), inner[0].abs().sum(0)))
    return found


def add(total: ForcedSums, one: ForcedSums) -> ForcedSums:
    """Both together; the tensors of `total` are taken over."""
    return ForcedSums(
        total.n_tokens + one.n_tokens,
        total.entry_gram.add_(one.entry_gram),
        total.inner_gram.add_(one.inner_gram),
        total.inner_abs.add_(one.inner_abs),
    )


def weigh_rows(statistics: BlockStatistics, module: str, config: ModelConfig, starved: dict[str, int]) -> torch.Tensor:
    """Row weights for a layer of a starved expert: all alike, as large as in the experts that are fed."""
    kind = module.rpartition(".")[2]
    fed = [f"{part.name}.{kind}" for part in list_experts(config) if part.name not in starved]
    own = statistics.layers[module].row_weights
    means = [statistics.layers[other].row_weights.mean() for other in fed]
    return torch.ones_like(own) * (torch.stack(means).mean() if means else 1.0)
