"""One decoder block from float to grid: scales, ranges, rounding, and the check that it was worth it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.grid import quantize_rtn
from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.quantize.activations import Activations
from edgeawq.quantize.clip_search import search_clip
from edgeawq.quantize.fold import fold_scales, snap_to_float16, tie_query_heads
from edgeawq.quantize.gptq import GptqPlan, quantize_gptq
from edgeawq.quantize.grid import GridFormat, dequantize_to_tensor, round_to_linear
from edgeawq.quantize.llama import BlockWeights, RopeTables, run_block
from edgeawq.quantize.mixed import choose_channels, keep_channels, seed_layer
from edgeawq.quantize.observe import BlockStatistics
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.recipe import ScalePair
from edgeawq.quantize.scale_search import Exponents, LayerProblem, ScaleChoice, search_scales
from edgeawq.quantize.settings import QuantizeSettings

MIN_SHARE = 1e-30

# The grid of each linear layer of a block, by module.
BlockFormats = Mapping[str, GridFormat]


@dataclass(frozen=True)
class QuantizedBlock:
    """What a block becomes in the checkpoint: linear layers on their grid, everything else in float16."""

    linears: dict[str, QuantizedLinear]  # by module inside the block; none where the method is for analysis only
    floats: dict[str, torch.Tensor]  # norms, biases and routers by name inside the block


@dataclass(frozen=True)
class FoldedBlock:
    """A float block that computes what the source's does, with AWQ's channel scales folded in."""

    weights: BlockWeights
    channel_scales: dict[str, torch.Tensor]  # by module, [in_features]
    exponents: dict[str, Exponents]  # by module; how the scales were made


@dataclass(frozen=True)
class LayerOutcome:
    """How one linear layer came out; errors are |X(W - W')ᵀ|² / |X Wᵀ|² over the (weighted) calibration tokens."""

    bits: int
    rtn_error: float
    error: float
    activation_exponent: float  # r: the scale is x̄ʳ / w̄ʷ
    weight_exponent: float
    mean_clip: float  # chosen range over the full one, mean over groups


@dataclass(frozen=True)
class BlockOutcome:
    """How one block came out; losses are errors of the block's output relative to what it adds, mean over tokens."""

    rtn_loss: float
    loss: float
    is_reverted: bool  # the method did not help: the block is rounded to nearest
    layers: dict[str, LayerOutcome]
    # Experts that saw too few tokens for statistics of their own, by name, and how many they saw.
    starved_experts: dict[str, int] = field(default_factory=dict)


def quantize_block_rtn(weights: BlockWeights, forms: BlockFormats) -> QuantizedBlock:
    """Every linear layer rounded to nearest, nothing folded."""
    linears = {
        module: quantize_rtn(
            weights[f"{module}.weight"].float().cpu().numpy(),
            forms[module].bits,
            forms[module].group_size,
            is_symmetric=forms[module].is_symmetric,
        )
        for module in forms
    }
    return QuantizedBlock(linears, pick_floats(weights, forms))


def fold_nothing(weights: BlockWeights, forms: BlockFormats) -> FoldedBlock:
    """The block as it is, for methods without channel scales."""
    ones = {module: torch.ones_like(weights[f"{module}.weight"][0]) for module in forms}
    return FoldedBlock(weights, ones, dict.fromkeys(forms, (0.0, 0.0)))


def fold_best_scales(
    weights: BlockWeights,
    statistics: BlockStatistics,
    forms: BlockFormats,
    config: ModelConfig,
    pairs: tuple[ScalePair, ...],
    workers: Workers,
) -> FoldedBlock:
    """Search AWQ's channel scales and fold them."""
    choices: dict[str, ScaleChoice] = {}
    folded = weights
    for pair in pairs:
        choice = choose_scales(pair, weights, statistics, forms, config, workers)
        choices |= dict.fromkeys(pair.linears, choice)
        folded = fold_scales(folded, pair, choice.channel_scales, config)
    return FoldedBlock(
        folded,
        {module: choice.channel_scales for module, choice in choices.items()},
        {module: choice.exponents for module, choice in choices.items()},
    )


def choose_scales(
    pair: ScalePair,
    weights: BlockWeights,
    statistics: BlockStatistics,
    forms: BlockFormats,
    config: ModelConfig,
    workers: Workers,
) -> ScaleChoice:
    """The scales of one pair, in the form in which they can be folded exactly."""
    problems = tuple(
        LayerProblem(
            weights[f"{module}.weight"],
            statistics.layers[module].gram,
            statistics.layers[module].row_weights,
            forms[module],
        )
        for module in pair.linears
    )

    def tie(scales: torch.Tensor) -> torch.Tensor:
        return tie_query_heads(scales, config) if pair.per_kv_head else scales

    choice = search_scales(problems, statistics.mean_abs[pair.name], tie, workers)
    if not pair.previous_is_norm:
        return choice
    norm = weights[f"{pair.previous}.weight"]
    return ScaleChoice(choice.exponents, snap_to_float16(choice.channel_scales, norm))


def round_clipped(
    folded: FoldedBlock, statistics: BlockStatistics, forms: BlockFormats, workers: Workers
) -> dict[str, QuantizedLinear]:
    """Every linear layer rounded to nearest in the ranges that the clip search finds."""
    linears = {}
    for module in forms:
        weight, gram = folded.weights[f"{module}.weight"], scale_gram(module, folded, statistics)
        grid = search_clip(weight, gram, forms[module], workers)
        linears[module] = round_to_linear(weight, grid.scales, grid.zeros, forms[module])
    return linears


def round_gptq(
    folded: FoldedBlock, statistics: BlockStatistics, forms: BlockFormats, plan: GptqPlan, workers: Workers
) -> dict[str, QuantizedLinear]:
    """Every linear layer rounded by GPTQ: on the clip search's grids with act-order, else on grids of its own.

    Both ways leave about the same error; on the clip search's grids in the usual order it would be a fifth more.
    """
    grids: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for module in forms if plan.act_order else ():
        weight, gram = folded.weights[f"{module}.weight"], scale_gram(module, folded, statistics)
        grid = search_clip(weight, gram, forms[module], workers)
        grids[module] = (grid.scales, grid.zeros)

    def round_one(module: str) -> QuantizedLinear:
        weight, gram = folded.weights[f"{module}.weight"], scale_gram(module, folded, statistics)
        return quantize_gptq(weight, gram, forms[module], plan, grids.get(module))

    return dict(zip(forms, workers.run(round_one, forms), strict=True))


def scale_gram(module: str, folded: FoldedBlock, statistics: BlockStatistics) -> torch.Tensor:
    """The Gram matrix of what the folded layer reads: activations divided by the channel scales."""
    scales = folded.channel_scales[module]
    return statistics.layers[module].gram / (scales[:, None] * scales)


def keep_block_channels(
    layer: int,
    weights: BlockWeights,
    statistics: BlockStatistics,
    forms: BlockFormats,
    pairs: tuple[ScalePair, ...],
    settings: QuantizeSettings,
    workers: Workers,
) -> QuantizedBlock:
    """The block with some channels of every layer in float16 and the rest rounded to nearest; all stored in float."""
    mean_abs = {module: statistics.mean_abs[pair.name] for pair in pairs for module in pair.linears}

    def keep(module: str) -> torch.Tensor:
        weight, generator = weights[f"{module}.weight"], seed_layer(settings.seed, layer, module)
        chosen = choose_channels(settings.criterion, weight, mean_abs[module], settings.kept_share, generator)
        return keep_channels(weight, forms[module], chosen)

    rounded = dict(zip(forms, workers.run(keep, forms), strict=True))
    return QuantizedBlock({}, pick_floats(weights | {f"{module}.weight": rounded[module] for module in forms}, {}))


def read_rounded(block: QuantizedBlock, module: str, source: torch.Tensor) -> torch.Tensor:
    """A layer's weight as the checkpoint will hold it, where and of what type `source` is."""
    linear = block.linears.get(module)
    found = block.floats[f"{module}.weight"] if linear is None else dequantize_to_tensor(linear, source.dtype)
    return found.to(source)


def describe_layers(
    weights: BlockWeights,
    folded: FoldedBlock,
    forms: BlockFormats,
    rtn: QuantizedBlock,
    block: QuantizedBlock,
    statistics: BlockStatistics,
) -> dict[str, LayerOutcome]:
    """How each layer came out, beside rounding to nearest."""
    outcomes = {}
    for module in forms:
        source, scaled = weights[f"{module}.weight"], folded.weights[f"{module}.weight"]
        plain, rounded = (read_rounded(one, module, source) for one in (rtn, block))
        outcomes[module] = LayerOutcome(
            bits=forms[module].bits,
            rtn_error=measure_layer_error(source, plain, statistics.layers[module].gram),
            error=measure_layer_error(scaled, rounded, scale_gram(module, folded, statistics)),
            activation_exponent=folded.exponents[module][0],
            weight_exponent=folded.exponents[module][1],
            mean_clip=measure_clip(scaled, block.linears[module]) if module in block.linears else 1.0,
        )
    return outcomes


def measure_clip(weight: torch.Tensor, linear: QuantizedLinear) -> float:
    """The grid's range over the weights' own, mean over groups that hold anything but zeros."""
    groups = weight.view(weight.shape[0], -1, linear.group_size)
    full = groups.amax(-1).clamp(min=0.0) - groups.amin(-1).clamp(max=0.0)
    chosen = torch.from_numpy(linear.scales).to(weight.device).float() * float((1 << linear.bits) - 1)
    ratios = (chosen / full)[full > 0.0]
    return float(ratios.mean(dtype=torch.float64)) if ratios.numel() else 1.0


def pick_floats(weights: BlockWeights, forms: BlockFormats) -> dict[str, torch.Tensor]:
    """What stays in float (norms, biases, routers), rounded to the float16 that the checkpoint holds."""
    quantized = {f"{module}.weight" for module in forms}
    return {name: tensor.half().cpu() for name, tensor in weights.items() if name not in quantized}


def dequantize_block(block: QuantizedBlock, dtype: torch.dtype, device: torch.device | None = None) -> BlockWeights:
    """The weights that a runtime computes with."""
    weights = {name: tensor.to(dtype).to(device or "cpu") for name, tensor in block.floats.items()}
    for module, linear in block.linears.items():
        weights[f"{module}.weight"] = dequantize_to_tensor(linear, dtype).to(device or "cpu")
    return weights


def measure_layer_error(weight: torch.Tensor, rounded: torch.Tensor, gram: torch.Tensor) -> float:
    """|X(W - W')ᵀ|² / |X Wᵀ|² from the Gram matrix of X."""
    error = rounded - weight
    share = ((error @ gram) * error).sum(dtype=torch.float64)
    whole = ((weight @ gram) * weight).sum(dtype=torch.float64)
    return float(share) / max(float(whole), MIN_SHARE)


def measure_block_loss(
    hidden: Activations,
    expected: Activations,
    weights: BlockWeights,
    config: ModelConfig,
    rope: RopeTables,
    workers: Workers,
    stride: int = 1,
) -> float:
    """Mean over tokens of the output's squared error over the square of what the float block adds to the token.

    hidden and expected are the float block's input and output, [sequences, seqlen, hidden_size]; every stride-th
    sequence counts.
    """

    def measure(sequence: int) -> float:
        one = slice(sequence, sequence + 1)
        source, wanted = hidden[one].to(workers.device), expected[one].to(workers.device)
        error = (run_block(source, weights, config, rope) - wanted).square_().sum(-1)
        added = (wanted - source).square_().sum(-1).clamp_(min=MIN_SHARE)
        return float((error / added).mean(dtype=torch.float64))

    return float(np.mean(workers.run(measure, range(0, len(hidden), stride))))
