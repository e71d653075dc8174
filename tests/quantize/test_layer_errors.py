from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edgeawq.errors import UsageError
from edgeawq.quantize.fold import fold_scales, tie_query_heads
from edgeawq.quantize.layer_errors import compare_blocks
from edgeawq.quantize.llama import BlockWeights
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.perplexity import StreamedModel, stream_model
from edgeawq.quantize.recipe import find_recipe
from tests.quantize.runs import LINEARS, SHAPE
from tests.tiny_models import make_tiny_model


@pytest.fixture
def model() -> StreamedModel:
    return stream_model(make_tiny_model(int(torch.randint(1 << 20, ())), quantized=False, **SHAPE))


CHUNKS = (3, 60)


def make_chunks() -> torch.Tensor:
    return torch.randint(0, 320, CHUNKS)


def fold(model: StreamedModel) -> StreamedModel:
    """The same function with other weights: random scales folded at every pair."""

    def read(layer: int) -> BlockWeights:
        weights = model.read_block(layer)
        for pair in find_recipe(model.config):
            width = weights[f"{pair.linears[0]}.weight"].shape[1]
            scales = torch.rand(width) * 3 + 0.3
            scales = tie_query_heads(scales, model.config) if pair.per_kv_head else scales
            weights = fold_scales(weights, pair, scales, model.config)
        return weights

    return replace(model, read_block=read)


def test_folded_scales_are_no_error(model: StreamedModel, workers: Workers) -> None:
    for block in compare_blocks(model, fold(model), make_chunks(), workers):
        assert max(block.layers.values()) < 1e-8
        assert block.block < 1e-8 and block.drift < 1e-8


def test_an_error_shows_in_its_layer_and_after_it(model: StreamedModel, workers: Workers) -> None:
    def read(layer: int) -> BlockWeights:
        weights = dict(model.read_block(layer))
        if layer == 1:
            down = weights["mlp.down_proj.weight"]
            weights["mlp.down_proj.weight"] = down * 1.1
        return weights

    first, second = compare_blocks(model, replace(model, read_block=read), make_chunks(), workers)
    assert first.drift == first.block == 0.0 and max(first.layers.values()) < 1e-12
    assert second.layers["mlp.down_proj"] == pytest.approx(0.01, rel=1e-3)
    assert all(second.layers[module] < 1e-12 for module in LINEARS if module != "mlp.down_proj")
    assert second.block > 0 and second.drift > 0


def test_drift_grows_from_the_embedding_on(model: StreamedModel, workers: Workers) -> None:
    other = replace(model, embedding=model.embedding * 1.05)
    blocks = compare_blocks(model, other, make_chunks(), workers)
    assert all(block.block < 1e-12 for block in blocks)  # the blocks themselves are the same
    assert all(block.drift > 1e-6 for block in blocks)


def test_progress_and_other_shapes(model: StreamedModel, workers: Workers) -> None:
    seen: list[tuple[int, int]] = []
    compare_blocks(model, model, make_chunks(), workers, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    other = stream_model(make_tiny_model(3, quantized=False, **{**SHAPE, "intermediate": 128}))
    with pytest.raises(UsageError, match="intermediate_size is 128, the reference has 96"):
        compare_blocks(model, other, make_chunks(), workers)
