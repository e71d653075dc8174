"""Bits for every layer from what they cost: the least error in all that an average number of bits allows.

The cost of a layer at b bits is the error that b-bit weights leave in its output, every token and row counted by how
strongly the block's own output reacts to it, relative to that output's size (`edgeawq.quantize.observe`). Costs of
different layers and blocks are then shares of the same thing and may be added. Layers that a runtime keeps as one
matrix (q, k and v; gate and up) get the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.errors import UsageError
from edgeawq.quantize.activations import Activations
from edgeawq.quantize.grid import GridFormat
from edgeawq.quantize.llama import BlockWeights, make_rope
from edgeawq.quantize.observe import observe_block
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.recipe import ScalePair
from edgeawq.quantize.scale_search import CLIP_RATIOS, SAMPLED_ROWS, LayerProblem, measure_loss, sample_rows
from edgeawq.quantize.starved_experts import feed_starved_experts

SCALE_BITS = 16


@dataclass(frozen=True)
class BitOptions:
    """Layers that share their bits, and what each number of bits costs them."""

    modules: tuple[str, ...]
    costs: Mapping[int, float]  # by bits, ascending: error in the block's output, summed over tokens
    sizes: Mapping[int, int]  # by bits: bits that the layers take, scales and zeros included


def measure_options(
    prefix: str,
    hidden: Activations,
    outputs: Activations,
    weights: BlockWeights,
    forms: Mapping[str, tuple[GridFormat, ...]],
    config: ModelConfig,
    pairs: tuple[ScalePair, ...],
    seed: int,
    workers: Workers,
) -> list[BitOptions]:
    """The options of one float block's layers; fills outputs with its output. forms: what each layer may become."""
    rope = make_rope(config, hidden.shape[1], torch.float32, device=workers.device)
    statistics = observe_block(hidden, outputs, weights, config, rope, pairs, seed, workers)
    statistics = feed_starved_experts(statistics, hidden, weights, config, rope, workers)

    def measure(choice: tuple[str, GridFormat]) -> float:
        module, form = choice
        layer, weight = statistics.layers[module], weights[f"{module}.weight"]
        problem = LayerProblem(weight, layer.gram, layer.row_weights, form)
        return measure_loss(sample_rows((problem,), SAMPLED_ROWS), torch.ones_like(weight[0]), CLIP_RATIOS)

    found: list[BitOptions] = []
    for modules in split_pairs(pairs, forms):
        choices = [(module, form) for module in modules for form in forms[module]]
        losses = workers.run(measure, choices)
        costs: dict[int, float] = {}
        sizes: dict[int, int] = {}
        for (module, form), loss in zip(choices, losses, strict=True):
            rows, columns = weights[f"{module}.weight"].shape
            groups = columns // form.group_size
            size = rows * (columns * form.bits + groups * (SCALE_BITS + form.bits))
            costs[form.bits] = costs.get(form.bits, 0.0) + loss
            sizes[form.bits] = sizes.get(form.bits, 0) + size
        found.append(BitOptions(tuple(prefix + module for module in modules), costs, sizes))
    return found


def split_pairs(pairs: tuple[ScalePair, ...], forms: Mapping[str, tuple[GridFormat, ...]]) -> list[tuple[str, ...]]:
    """The layers that share their bits: those of a pair, apart where the bits of some are given."""
    found: list[tuple[str, ...]] = []
    for pair in pairs:
        alike: dict[tuple[GridFormat, ...], list[str]] = {}
        for module in pair.linears:
            alike.setdefault(forms[module], []).append(module)
        found += [tuple(modules) for modules in alike.values()]
    return found


def choose_bits(options: Sequence[BitOptions], n_weights: int, target: float) -> dict[str, int]:
    """Bits by module with an average of at most `target` bits a weight, scales and zeros included.

    From the fewest bits everywhere, whatever lowers the error most for a bit is taken next, as long as it fits.
    Raises UsageError where even the fewest bits are more.
    """
    chosen = [min(option.sizes) for option in options]
    left = target * n_weights - sum(option.sizes[bits] for option, bits in zip(options, chosen, strict=True))
    if left < 0:
        least = target - left / n_weights
        raise UsageError(
            f"an average of {target} bits per weight is not possible; the fewest are {least:.3f}, scales included",
            remedy="give more with --target-bpw, or larger groups",
        )
    while True:
        best: tuple[float, int, int] | None = None
        for number, option in enumerate(options):
            now = chosen[number]
            for bits, size in option.sizes.items():
                extra = size - option.sizes[now]
                if bits > now and extra <= left:
                    gain = (option.costs[now] - option.costs[bits]) / extra
                    if best is None or gain > best[0]:
                        best = (gain, number, bits)
        if best is None:
            break
        _, number, bits = best
        left -= options[number].sizes[bits] - options[number].sizes[chosen[number]]
        chosen[number] = bits
    return {module: bits for option, bits in zip(options, chosen, strict=True) for module in option.modules}
