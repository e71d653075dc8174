"""Where a quantized model departs from its float original: layer by layer, block by block, and on the way through.

The two models need not have the same weights where they have the same output: AWQ divides the rows of v_proj and
up_proj by factors that the next layer takes back. Outputs of such layers are compared after each channel was brought
to the float model's by the factor that fits best (least squares).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.experts import list_routers
from edgeawq.errors import UsageError
from edgeawq.quantize.llama import BlockWeights, LinearFunction, RopeTables, apply_linear, make_rope, run_block
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.perplexity import OnProgress, StreamedModel
from edgeawq.quantize.recipe import find_recipe

TINY = 1e-30


@dataclass(frozen=True)
class BlockErrors:
    """Squared errors relative to the float model's squares, over all tokens of the sample."""

    layers: dict[str, float]  # by module inside the block, the block reading the float model's states
    block: float  # of the block's output, relative to what the float block adds to its input
    drift: float  # of the hidden states after the block, the model reading its own states from the first block on


@dataclass
class Sums:
    """Per output channel of a layer: Σ y², Σ ŷ², Σ y ŷ over tokens; y of the float model, ŷ of the other."""

    products: torch.Tensor = field(default_factory=lambda: torch.zeros(3, 1, dtype=torch.float64))  # [3, channels]

    def add(self, wanted: torch.Tensor, found: torch.Tensor) -> None:
        """Count outputs [tokens, channels]."""
        parts = [(a * b).sum(0, dtype=torch.float64) for a, b in ((wanted, wanted), (found, found), (wanted, found))]
        self.products = self.products + torch.stack(parts)

    def measure(self, is_rescaled: bool) -> float:
        """The error of all channels together, relative to Σ y²."""
        energy, own, shared = self.products
        error = energy - shared.square() / own.clamp(min=TINY) if is_rescaled else energy + own - 2 * shared
        return float(error.sum().clamp(min=0.0)) / max(float(energy.sum()), TINY)


def compare_blocks(
    reference: StreamedModel,
    model: StreamedModel,
    chunks: torch.Tensor,
    workers: Workers,
    on_progress: OnProgress = lambda done, total: None,
) -> list[BlockErrors]:
    """Errors of every block of `model` on chunks [chunks, positions]; one block of each model is in memory."""
    config = reference.config
    check_same_graph(config, model.config)
    rope = make_rope(config, chunks.shape[1], reference.embedding.dtype)
    rescaled = {pair.previous for pair in find_recipe(config) if not pair.previous_is_norm}
    states = [F.embedding(chunk[None], reference.embedding) for chunk in chunks]
    own_states = [F.embedding(chunk[None], model.embedding) for chunk in chunks]
    found: list[BlockErrors] = []
    for layer in range(config.n_layers):
        pair = BlockPair(reference.read_block(layer), model.read_block(layer), config, rope)
        results = workers.run(pair.compare, list(zip(states, own_states, strict=True)))
        states = [result.wanted for result in results]
        own_states = [result.own for result in results]
        found.append(sum_up(results, rescaled))
        on_progress(layer + 1, config.n_layers)
    return found


@dataclass(frozen=True)
class SequenceResult:
    """One sequence after a block of both models, and its sums."""

    wanted: torch.Tensor  # float block's output, [1, positions, hidden_size]
    own: torch.Tensor  # the other model's, on its own states
    layers: dict[str, Sums]
    block: tuple[float, float]  # error and what the float block added, squares
    drift: tuple[float, float]  # error and states, squares


@dataclass(frozen=True)
class BlockPair:
    """The same block of two models."""

    reference: BlockWeights
    weights: BlockWeights
    config: ModelConfig
    rope: RopeTables

    def compare(self, both: tuple[torch.Tensor, torch.Tensor]) -> SequenceResult:
        """Compare on one sequence: the float model's states and the other's own, each [1, positions, hidden_size]."""
        states, own_states = both
        outputs: dict[str, torch.Tensor] = {}
        wanted = run_block(states, self.reference, self.config, self.rope, linear=keep_outputs(outputs))
        layers: dict[str, Sums] = {}
        routers = list_routers(self.config)

        def collect(features: torch.Tensor, weights: BlockWeights, module: str) -> torch.Tensor:
            if module in routers:
                # Layers are compared on the same tokens, so they go where the float model sends them.
                return outputs.pop(module)
            output = apply_linear(features, weights, module)
            layers[module] = Sums()
            layers[module].add(outputs.pop(module)[0], output[0])
            return output

        found = run_block(states, self.weights, self.config, self.rope, linear=collect)
        if routers:
            found = run_block(states, self.weights, self.config, self.rope)
        own = run_block(own_states, self.weights, self.config, self.rope)
        return SequenceResult(
            wanted,
            own,
            layers,
            (sum_squares(found - wanted), sum_squares(wanted - states)),
            (sum_squares(own - wanted), sum_squares(wanted)),
        )


def keep_outputs(outputs: dict[str, torch.Tensor]) -> LinearFunction:
    """A linear function that also puts every output [batch, positions, out_features] into `outputs`."""

    def run(features: torch.Tensor, weights: BlockWeights, module: str) -> torch.Tensor:
        outputs[module] = apply_linear(features, weights, module)
        return outputs[module]

    return run


def sum_up(results: list[SequenceResult], rescaled: set[str]) -> BlockErrors:
    """The errors of a block over all sequences."""
    layers: dict[str, float] = {}
    for module in results[0].layers:
        total = Sums(torch.stack([result.layers[module].products for result in results]).sum(0))
        layers[module] = total.measure(module in rescaled)
    return BlockErrors(layers, divide(result.block for result in results), divide(result.drift for result in results))


def divide(pairs: Iterable[tuple[float, float]]) -> float:
    """Sum of the first over sum of the second."""
    errors, sizes = zip(*pairs, strict=True)
    return float(sum(errors)) / max(float(sum(sizes)), TINY)


def sum_squares(values: torch.Tensor) -> float:
    """Sum of squares in float64."""
    return float(values.square().sum(dtype=torch.float64))


def check_same_graph(reference: ModelConfig, config: ModelConfig) -> None:
    """Raise UsageError unless the blocks of two models can be compared one by one."""
    names = (
        "n_layers",
        "hidden_size",
        "intermediate_size",
        "n_heads",
        "n_kv_heads",
        "head_dim",
        "vocab_size",
        "experts",
    )
    for name in names:
        wanted, found = getattr(reference, name), getattr(config, name)
        if wanted != found:
            raise UsageError(
                f"the models cannot be compared: {name} is {found}, the reference has {wanted}",
                remedy="give the float model that the others were made from as --reference",
            )
