"""One block's way from float to grid under a method: what a quantization does for every block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.quantize.activations import Activations
from edgeawq.quantize.block import (
    BlockFormats,
    BlockOutcome,
    FoldedBlock,
    QuantizedBlock,
    dequantize_block,
    describe_layers,
    fold_best_scales,
    fold_nothing,
    keep_block_channels,
    measure_block_loss,
    pick_floats,
    quantize_block_rtn,
    round_clipped,
    round_gptq,
)
from edgeawq.quantize.gptq import GptqPlan
from edgeawq.quantize.llama import BlockWeights, RopeTables, make_rope, run_block
from edgeawq.quantize.methods import METHODS
from edgeawq.quantize.observe import BlockStatistics, observe_block
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.recipe import find_recipe
from edgeawq.quantize.rounding import RoundingPlan, learn_rounding
from edgeawq.quantize.settings import QuantizeSettings
from edgeawq.quantize.starved_experts import feed_starved_experts, find_starved

# Calibration tokens on which a finished block is compared with its float self.
LOSS_TOKENS = 1024


@dataclass(frozen=True)
class BlockStates:
    """Activations in front of a block, [sequences, seqlen, hidden_size]."""

    hidden: Activations  # of the float model
    quantized: Activations  # after the blocks as they were quantized; the same ones where the method looks away


def quantize_block(
    layer: int,
    weights: BlockWeights,
    states: BlockStates,
    forms: BlockFormats,
    config: ModelConfig,
    settings: QuantizeSettings,
    workers: Workers,
    make_room: Callable[[str], Activations],
) -> tuple[QuantizedBlock, BlockOutcome, BlockStates]:
    """Quantize block number `layer`: the block, how it came out, and the activations behind it.

    The weights lie on the workers' device, activations in main memory. make_room gives room for activations, under the
    names "hidden" and "quantized". Raises QuantizationError where the
    float block gives NaN or infinity. The result depends on the other arguments only.
    """
    expected = make_room("hidden")
    rope = make_rope(config, states.hidden.shape[1], torch.float32, device=workers.device)
    rtn = quantize_block_rtn(weights, forms)
    pairs = find_recipe(config)
    seed = (settings.seed * config.n_layers + layer) * len(states.hidden)
    statistics = observe_block(states.hidden, expected, weights, config, rope, pairs, seed, workers)
    statistics = feed_starved_experts(statistics, states.hidden, weights, config, rope, workers)
    method = METHODS[settings.method]
    if method.folds_scales:
        folded = fold_best_scales(weights, statistics, forms, config, pairs, workers)
    else:
        folded = fold_nothing(weights, forms)
    if method.keeps_channels:
        block = keep_block_channels(layer, weights, statistics, forms, pairs, settings, workers)
    else:
        block = round_block(folded, statistics, forms, settings, workers)
    if method.learns_rounding:
        plan = RoundingPlan(steps=settings.rounding_steps)
        source = folded.weights | {name: tensor.float().to(workers.device) for name, tensor in block.floats.items()}
        learned = learn_rounding(source, block.linears, states.quantized, expected, config, rope, plan, seed, workers)
        block = QuantizedBlock(learned, block.floats)
    layers = describe_layers(weights, folded, forms, rtn, block, statistics)
    stride = max(1, states.hidden.shape[0] * states.hidden.shape[1] // LOSS_TOKENS)

    def measure(one: QuantizedBlock) -> float:
        rounded = dequantize_block(one, torch.float32, workers.device)
        return measure_block_loss(states.quantized, expected, rounded, config, rope, workers, stride)

    rtn_loss, loss = measure(rtn), measure(block)
    is_reverted = not loss < rtn_loss and not method.keeps_channels
    if is_reverted:
        block = rtn
    behind = expected
    if method.learns_rounding:
        behind = make_room("quantized")
        rounded = dequantize_block(block, torch.float32, workers.device)
        run_sequences(states.quantized, behind, rounded, config, rope, workers)
    starved = find_starved(statistics, config)
    return block, BlockOutcome(rtn_loss, loss, is_reverted, layers, starved), BlockStates(expected, behind)


def round_block(
    folded: FoldedBlock,
    statistics: BlockStatistics,
    forms: BlockFormats,
    settings: QuantizeSettings,
    workers: Workers,
) -> QuantizedBlock:
    """The folded block on its grids, layer by layer."""
    method = METHODS[settings.method]
    if method.rounds_by_columns:
        act_order = method.act_order if settings.act_order is None else settings.act_order
        linears = round_gptq(folded, statistics, forms, GptqPlan(act_order), workers)
    else:
        linears = round_clipped(folded, statistics, forms, workers)
    return QuantizedBlock(linears, pick_floats(folded.weights, forms))


def run_sequences(
    hidden: Activations,
    outputs: Activations,
    weights: BlockWeights,
    config: ModelConfig,
    rope: RopeTables,
    workers: Workers,
) -> None:
    """Fill outputs with the block's output for hidden, both [sequences, seqlen, hidden_size], sequence by sequence."""

    def run(sequence: int) -> None:
        one = slice(sequence, sequence + 1)
        outputs[one] = run_block(hidden[one].to(workers.device), weights, config, rope).cpu()

    workers.run(run, range(len(hidden)))
