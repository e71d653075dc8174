"""The quantizer on the embedded model: what tiny random models cannot show."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from edgeawq.checkpoints.model import Checkpoint
from edgeawq.checkpoints.open_model import open_model
from edgeawq.errors import MissingExtraError
from edgeawq.quantize.block import (
    QuantizedBlock,
    dequantize_block,
    describe_layers,
    fold_best_scales,
    measure_block_loss,
    pick_floats,
    quantize_block_rtn,
    round_clipped,
)
from edgeawq.quantize.calibration import make_encoder
from edgeawq.quantize.fold import fold_scales, snap_to_float16, tie_query_heads
from edgeawq.quantize.grid import GridFormat
from edgeawq.quantize.llama import TorchDecoder, make_rope, read_block, read_weight, run_block
from edgeawq.quantize.observe import observe_block
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.self_text import OPENINGS, QUESTIONS
from tests.quantize.runs import LINEARS, LLAMA_PAIRS, measure_nmse

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    try:
        return open_model("embedded:smollm2-135m-instruct")
    except MissingExtraError as error:
        pytest.skip(f"{error.what}: {error.remedy}")


@pytest.fixture
def tokens(model: Checkpoint) -> torch.Tensor:
    """Some text, [sequences, 64]."""
    encode = make_encoder(model.tokenizer, model.config)
    ids = encode(" ".join((*OPENINGS, *QUESTIONS)))
    return torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)


def test_folding_keeps_the_logits(model: Checkpoint, tokens: torch.Tensor) -> None:
    decoder = TorchDecoder(model, torch.float64)
    wanted = decoder(tokens[:1])
    torch.manual_seed(1)
    for number, weights in enumerate(decoder.blocks):
        for pair in LLAMA_PAIRS:
            width = weights[f"{pair.linears[0]}.weight"].shape[1]
            scales = (torch.randn(width, dtype=torch.float64) / 2).exp()
            if pair.per_kv_head:
                scales = tie_query_heads(scales, decoder.config)
            if pair.previous_is_norm:
                scales = snap_to_float16(scales, weights[f"{pair.previous}.weight"])
            weights = fold_scales(weights, pair, scales, decoder.config)
        decoder.blocks[number] = weights
    assert measure_nmse(decoder(tokens[:1]), wanted) <= 1e-10


def test_awq_halves_the_error_of_a_block(model: Checkpoint, tokens: torch.Tensor, workers: Workers) -> None:
    """Measured on text that was not calibrated on."""
    config = model.config
    rope = make_rope(config, tokens.shape[1], torch.float32)
    hidden = F.embedding(tokens, read_weight(model, "model.embed_tokens", torch.float32))
    with torch.no_grad():
        first = read_block(model, 0, torch.float32)
        hidden = torch.cat(workers.run(lambda row: run_block(row[None], first, config, rope), list(hidden)))
        weights = read_block(model, 1, torch.float32)
        n_held_out = 3
        held_out, calibration = hidden[:n_held_out], hidden[n_held_out:]
        expected = run_block(held_out, weights, config, rope)
        forms = dict.fromkeys(LINEARS, GridFormat(4, 64))
        rtn = quantize_block_rtn(weights, forms)
        statistics = observe_block(
            calibration, torch.empty_like(calibration), weights, config, rope, LLAMA_PAIRS, 0, workers
        )
        folded = fold_best_scales(weights, statistics, forms, config, LLAMA_PAIRS, workers)
        awq = QuantizedBlock(round_clipped(folded, statistics, forms, workers), pick_floats(folded.weights, forms))
        layers = describe_layers(weights, folded, forms, rtn, awq, statistics)
        losses = [
            measure_block_loss(held_out, expected, dequantize_block(block, torch.float32), config, rope, workers)
            for block in (rtn, awq)
        ]
    assert losses[1] < 0.5 * losses[0]
    assert all(layer.error < layer.rtn_error for layer in layers.values())
