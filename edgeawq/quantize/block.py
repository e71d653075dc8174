"""One decoder block from float to grid: scales, clip, and the check that it was worth it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.grid import quantize_rtn
from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.quantize.clip_search import search_clip
from edgeawq.quantize.fold import fold_scales, snap_to_float16, tie_query_heads
from edgeawq.quantize.grid import dequantize_to_tensor, round_to_linear
from edgeawq.quantize.llama import LINEARS, BlockWeights, RopeTables, run_block
from edgeawq.quantize.observe import BlockStatistics
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.recipe import ScalePair
from edgeawq.quantize.scale_search import LayerProblem, ScaleChoice, search_scales

MIN_SHARE = 1e-30


@dataclass(frozen=True)
class QuantizedBlock:
    """What a block becomes in the checkpoint: linear layers on their grid, everything else in float16."""

    linears: dict[str, QuantizedLinear]  # by module inside the block
    floats: dict[str, torch.Tensor]  # norms and biases by name inside the block


@dataclass(frozen=True)
class LayerOutcome:
    """How one linear layer came out; errors are |X(W - W')ᵀ|² / |X Wᵀ|² over the (weighted) calibration tokens."""

    rtn_error: float
    awq_error: float
    activation_exponent: float  # r: the scale is x̄ʳ / w̄ʷ
    weight_exponent: float
    mean_clip: float  # chosen range over the full one, mean over groups


@dataclass(frozen=True)
class BlockOutcome:
    """How one block came out; losses are errors of the block's output relative to what it adds, mean over tokens."""

    rtn_loss: float
    awq_loss: float
    is_reverted: bool  # AWQ did not help: the block is rounded to nearest
    layers: dict[str, LayerOutcome]


def quantize_block_rtn(weights: BlockWeights, bits: int, group_size: int) -> QuantizedBlock:
    """Every linear layer rounded to nearest, nothing folded."""
    linears = {
        module: quantize_rtn(weights[f"{module}.weight"].float().numpy(), bits, group_size) for module in LINEARS
    }
    return QuantizedBlock(linears, pick_floats(weights))


def quantize_block_awq(
    weights: BlockWeights,
    rtn: QuantizedBlock,
    statistics: BlockStatistics,
    config: ModelConfig,
    pairs: tuple[ScalePair, ...],
    workers: Workers,
) -> tuple[QuantizedBlock, dict[str, LayerOutcome]]:
    """Search scales, fold them, search ranges; the quantized block and how each layer came out.

    Bits and group size are those of `rtn`, the same block rounded to nearest.
    """
    any_linear = next(iter(rtn.linears.values()))
    bits, group_size = any_linear.bits, any_linear.group_size
    choices: dict[str, ScaleChoice] = {}
    folded = weights
    for pair in pairs:
        choice = choose_scales(pair, weights, statistics, config, bits, group_size, workers)
        choices |= dict.fromkeys(pair.linears, choice)
        folded = fold_scales(folded, pair, choice.channel_scales, config)
    linears: dict[str, QuantizedLinear] = {}
    outcomes: dict[str, LayerOutcome] = {}
    for module in LINEARS:
        scales = choices[module].channel_scales
        gram = statistics.layers[module].gram
        scaled_gram = gram / (scales[:, None] * scales)
        weight = folded[f"{module}.weight"]
        grid = search_clip(weight, scaled_gram, bits, group_size, workers)
        linears[module] = round_to_linear(weight, grid.scales, grid.zeros, bits, group_size)
        source = weights[f"{module}.weight"]
        plain, rounded = (dequantize_to_tensor(block[module], source.dtype) for block in (rtn.linears, linears))
        outcomes[module] = LayerOutcome(
            rtn_error=measure_layer_error(source, plain, gram),
            awq_error=measure_layer_error(weight, rounded, scaled_gram),
            activation_exponent=choices[module].exponents[0],
            weight_exponent=choices[module].exponents[1],
            mean_clip=float((grid.high_ratio + grid.low_ratio).mean(dtype=torch.float64)) / 2,
        )
    return QuantizedBlock(linears, pick_floats(folded)), outcomes


def choose_scales(
    pair: ScalePair,
    weights: BlockWeights,
    statistics: BlockStatistics,
    config: ModelConfig,
    bits: int,
    group_size: int,
    workers: Workers,
) -> ScaleChoice:
    """The scales of one pair, in the form in which they can be folded exactly."""
    problems = tuple(
        LayerProblem(weights[f"{module}.weight"], statistics.layers[module].gram, statistics.layers[module].row_weights)
        for module in pair.linears
    )

    def tie(scales: torch.Tensor) -> torch.Tensor:
        return tie_query_heads(scales, config) if pair.per_kv_head else scales

    choice = search_scales(problems, statistics.mean_abs[pair.name], bits, group_size, tie, workers)
    if not pair.previous_is_norm:
        return choice
    norm = weights[f"{pair.previous}.weight"]
    return ScaleChoice(choice.exponents, snap_to_float16(choice.channel_scales, norm))


def pick_floats(weights: BlockWeights) -> dict[str, torch.Tensor]:
    """What stays in float (norms, biases), rounded to the float16 that the checkpoint holds."""
    quantized = {f"{module}.weight" for module in LINEARS}
    return {name: tensor.half() for name, tensor in weights.items() if name not in quantized}


def dequantize_block(block: QuantizedBlock, dtype: torch.dtype) -> BlockWeights:
    """The weights that a runtime computes with."""
    weights = {name: tensor.to(dtype) for name, tensor in block.floats.items()}
    for module, linear in block.linears.items():
        weights[f"{module}.weight"] = dequantize_to_tensor(linear, dtype)
    return weights


def measure_layer_error(weight: torch.Tensor, rounded: torch.Tensor, gram: torch.Tensor) -> float:
    """|X(W - W')ᵀ|² / |X Wᵀ|² from the Gram matrix of X."""
    error = rounded - weight
    share = ((error @ gram) * error).sum(dtype=torch.float64)
    whole = ((weight @ gram) * weight).sum(dtype=torch.float64)
    return float(share) / max(float(whole), MIN_SHARE)


def measure_block_loss(
    hidden: torch.Tensor,
    expected: torch.Tensor,
    weights: BlockWeights,
    config: ModelConfig,
    rope: RopeTables,
    workers: Workers,
) -> float:
    """Mean over tokens of the output's squared error over the square of what the float block adds to the token.

    hidden and expected are the float block's input and output, [sequences, seqlen, hidden_size].
    """

    def measure(sequence: int) -> float:
        source, wanted = hidden[sequence : sequence + 1], expected[sequence : sequence + 1]
        error = (run_block(source, weights, config, rope) - wanted).square_().sum(-1)
        added = (wanted - source).square_().sum(-1).clamp_(min=MIN_SHARE)
        return float((error / added).mean(dtype=torch.float64))

    return float(np.mean(workers.run(measure, range(len(hidden)))))
