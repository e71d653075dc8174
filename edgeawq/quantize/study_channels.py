"""Two experiments of the AWQ paper on a model of one's own: which channels matter, and what scaling them does.

`salient` is its table 1: a share of each layer's input channels stays in float16, chosen by the activations' size, by
the weights' norm, or at random. `scale` is its table 2, and the search's curve: the weights of channels are multiplied
before rounding and divided after it. Both round to nearest, with nothing folded and no ranges searched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from edgeawq.checkpoints.grid import dequantize, quantize_rtn
from edgeawq.checkpoints.tensor_shapes import list_block_linears
from edgeawq.errors import UsageError
from edgeawq.quantize.evaluate import ReferenceStates, score_model
from edgeawq.quantize.grid import GridFormat
from edgeawq.quantize.layer_errors import compare_blocks
from edgeawq.quantize.llama import BlockWeights, apply_linear, make_rope, run_block
from edgeawq.quantize.mixed import CRITERIA, choose_channels, keep_channels, seed_layer
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.perplexity import StreamedModel
from edgeawq.quantize.recipe import find_recipe
from edgeawq.quantize.scores import ModelScore, TokenScores, Windows, summarize_scores
from edgeawq.quantize.study import OnStep, Value

TINY = 1e-8

# (layer, module, weight [out_features, in_features]) → the weight after rounding
RoundWeight = Callable[[int, str, torch.Tensor], torch.Tensor]
# Per layer, mean |x| of every linear layer's input [in_features], by module.
ChannelMeans = list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Bench:
    """What every variant of an experiment is measured with."""

    model: StreamedModel
    windows: Windows
    states: ReferenceStates
    base: TokenScores
    workers: Workers
    bits: int
    group_size: int

    def score(self, round_weight: RoundWeight) -> ModelScore:
        """Perplexity and divergence of the model with other weights."""
        return summarize_scores(
            score_model(self.change(round_weight), self.windows, self.workers, reference=self.states), self.base
        )

    def change(self, round_weight: RoundWeight) -> StreamedModel:
        """The model with every linear layer's weight replaced."""

        def read(layer: int) -> BlockWeights:
            weights = dict(self.model.read_block(layer))
            linears = list_block_linears(self.model.config)
            rounded = self.workers.run(lambda module: round_weight(layer, module, weights[f"{module}.weight"]), linears)
            weights.update({f"{module}.weight": weight for module, weight in zip(linears, rounded, strict=True)})
            return weights

        return replace(self.model, read_block=read)

    def round(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight rounded to nearest on its groups' grids."""
        return torch.from_numpy(dequantize(quantize_rtn(weight.numpy(), self.bits, self.group_size)))


def measure_channel_means(model: StreamedModel, chunks: torch.Tensor, workers: Workers) -> ChannelMeans:
    """Mean |x| of every linear layer's input channels over chunks [chunks, positions]."""
    readers = {pair.reader: pair.linears for pair in find_recipe(model.config)}
    rope = make_rope(model.config, chunks.shape[1], model.embedding.dtype)
    hidden = [F.embedding(chunk[None], model.embedding) for chunk in chunks]
    found: ChannelMeans = []
    for layer in range(model.config.n_layers):
        weights = model.read_block(layer)

        def run(state: torch.Tensor, weights: BlockWeights = weights) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            sums: dict[str, torch.Tensor] = {}

            def collect(features: torch.Tensor, block: BlockWeights, module: str) -> torch.Tensor:
                if module in readers:
                    sums[module] = features[0].abs().sum(0)
                return apply_linear(features, block, module)

            return run_block(state, weights, model.config, rope, linear=collect), sums

        results = workers.run(run, hidden)
        hidden = [output for output, _ in results]
        means = {}
        for first, modules in readers.items():
            total = torch.stack([sums[first] for _, sums in results]).sum(0) / chunks.numel()
            means.update(dict.fromkeys(modules, total))
        found.append(means)
    return found


def study_salient(
    bench: Bench, means: ChannelMeans, shares: Sequence[float], seed: int, on_step: OnStep
) -> list[dict[str, Value]]:
    """Rows of the paper's table 1: the float model, rounding alone, then every share by every criterion."""
    check_shares(shares)
    rows: list[dict[str, Value]] = [
        describe("float", None, summarize_scores(bench.base)),
        describe("none", 0.0, bench.score(lambda layer, module, weight: bench.round(weight))),
    ]
    steps = [(criterion, share) for share in shares for criterion in CRITERIA]
    for number, (criterion, share) in enumerate(steps):
        on_step(f"{criterion}, {100 * share:g} %", number, len(steps))

        def keep(
            layer: int, module: str, weight: torch.Tensor, by: str = criterion, part: float = share
        ) -> torch.Tensor:
            generator = seed_layer(seed, layer, module)
            chosen = choose_channels(by, weight, means[layer][module], part, generator)
            return keep_channels(weight, GridFormat(bench.bits, bench.group_size), chosen)

        rows.append(describe(criterion, share, bench.score(keep)))
    on_step("done", len(steps), len(steps))
    return rows


def describe(criterion: str, share: float | None, score: ModelScore) -> dict[str, Value]:
    """A row of the salient study."""
    divergence = score.divergence
    return {
        "criterion": criterion.replace("-", " "),
        "percent": None if share is None else 100 * share,
        "perplexity": score.perplexity,
        "kl": None if divergence is None else divergence.mean,
    }


@dataclass
class StepCounts:
    """How the grids of groups with a scaled channel changed: sums over these groups."""

    n_groups: int = 0
    changed: int = 0
    ratio: float = 0.0  # Σ Δ'/Δ


def study_scale(
    bench: Bench,
    means: ChannelMeans,
    chunks: torch.Tensor,
    factors: Sequence[float],
    share: float,
    on_step: OnStep,
) -> list[dict[str, Value]]:
    """Rows of the paper's table 2: the share of channels with the largest activations multiplied by a factor."""
    check_shares([share])
    rows: list[dict[str, Value]] = []
    for number, factor in enumerate(factors):
        on_step(f"factor {factor:g}", number, len(factors))
        # Rounding needs no text: the grids are compared in a pass of their own.
        counts = count_changed_steps(bench, means, factor, share)

        def scale(layer: int, module: str, weight: torch.Tensor, by: float = factor) -> torch.Tensor:
            scales = torch.ones(weight.shape[1])
            scales[top_channels(means[layer][module], share)] = by
            return bench.round(weight * scales) / scales

        rows.append(
            {
                "series": f"{100 * share:g} % of channels times s",
                "factor": factor,
                "changed_percent": 100 * counts.changed / counts.n_groups,
                "step_ratio": counts.ratio / counts.n_groups,
                "salient_error": counts.ratio / counts.n_groups / factor,
                **measure_variant(bench, scale, chunks),
            }
        )
    on_step("done", len(factors), len(factors))
    return rows


def study_exponent(
    bench: Bench, means: ChannelMeans, chunks: torch.Tensor, exponents: Sequence[float], on_step: OnStep
) -> list[dict[str, Value]]:
    """Rows of the search's curve: every channel multiplied by its activations' size to a power."""
    rows: list[dict[str, Value]] = []
    for number, exponent in enumerate(exponents):
        on_step(f"exponent {exponent:g}", number, len(exponents))

        def scale(layer: int, module: str, weight: torch.Tensor, by: float = exponent) -> torch.Tensor:
            scales = means[layer][module].clamp(min=TINY).pow(by)
            scales = scales / (scales.max() * scales.min()).sqrt()
            return bench.round(weight * scales) / scales

        rows.append(
            {
                "series": "all channels, s = mean |x| to the power r",
                "factor": exponent,
                **measure_variant(bench, scale, chunks),
            }
        )
    on_step("done", len(exponents), len(exponents))
    return rows


def measure_variant(bench: Bench, round_weight: RoundWeight, chunks: torch.Tensor) -> dict[str, Value]:
    """Error of the blocks' outputs (mean over blocks), perplexity and divergence of a variant."""
    blocks = compare_blocks(bench.model, bench.change(round_weight), chunks, bench.workers)
    score = bench.score(round_weight)
    return {
        "error_percent": 100 * sum(block.block for block in blocks) / len(blocks),
        "perplexity": score.perplexity,
        "kl": None if score.divergence is None else score.divergence.mean,
    }


def count_changed_steps(bench: Bench, means: ChannelMeans, factor: float, share: float) -> StepCounts:
    """How often, and how much, the step Δ of a group changes when its salient channels are multiplied."""
    counts = StepCounts()
    for layer in range(bench.model.config.n_layers):
        weights = bench.model.read_block(layer)
        for module in list_block_linears(bench.model.config):
            weight = weights[f"{module}.weight"]
            chosen = top_channels(means[layer][module], share)
            touched = (chosen // bench.group_size).unique()
            columns = (touched[:, None] * bench.group_size + torch.arange(bench.group_size)).flatten()
            scales = torch.ones(weight.shape[1])
            scales[chosen] = factor
            plain, scaled = (
                torch.from_numpy(quantize_rtn(part[:, columns].numpy(), bench.bits, bench.group_size).scales).double()
                for part in (weight, weight * scales)
            )
            counts.n_groups += plain.numel()
            counts.changed += int((plain != scaled).sum())
            counts.ratio += float((scaled / plain).sum())
    return counts


def top_channels(means: torch.Tensor, share: float) -> torch.Tensor:
    """The channels with the largest activations, at least one."""
    return means.topk(max(1, round(share * len(means)))).indices


def check_shares(shares: Sequence[float]) -> None:
    """Raise UsageError for a share of channels that is none."""
    for share in shares:
        if not 0 < share <= 1:
            raise UsageError(f"{100 * share:g} % of the channels make no sense", remedy="give percents such as 0.1,1,3")
