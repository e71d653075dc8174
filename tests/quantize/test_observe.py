from __future__ import annotations

import pytest
import torch

from edgeawq.quantize.llama import TorchDecoder, apply_linear, make_rope, run_block
from edgeawq.quantize.observe import compute_gram, observe_block
from edgeawq.quantize.parallel import start_workers
from tests.quantize.runs import LINEARS, LLAMA_PAIRS, SHAPE, measure_nmse
from tests.tiny_models import make_tiny_model


def make_case(seed: int, sequences: int = 5, seqlen: int = 13) -> tuple[TorchDecoder, torch.Tensor]:
    decoder = TorchDecoder(make_tiny_model(seed, quantized=False, attention_bias=True, **{**SHAPE, "n_layers": 1}))
    generator = torch.Generator().manual_seed(seed)
    return decoder, torch.randn(sequences, seqlen, decoder.config.hidden_size, generator=generator)


@pytest.mark.parametrize(("tokens", "width"), [(3, 1), (70, 511), (40, 512), (33, 1300)])
def test_gram(tokens: int, width: int) -> None:
    features = torch.randn(tokens, width, generator=torch.Generator().manual_seed(width))
    gram = compute_gram(features)
    assert torch.equal(gram, gram.T)
    assert measure_nmse(gram, features.double().T @ features.double()) < 1e-12


def test_the_output_is_the_float_block() -> None:
    decoder, hidden = make_case(1)
    rope = make_rope(decoder.config, hidden.shape[1], torch.float32)
    with start_workers(2) as workers:
        output = torch.empty_like(hidden)
        observe_block(hidden, output, decoder.blocks[0], decoder.config, rope, LLAMA_PAIRS, 0, workers)
    wanted = run_block(hidden, decoder.blocks[0], decoder.config, rope)
    assert measure_nmse(output, wanted) < 1e-12
    assert not output.requires_grad


def test_statistics_do_not_depend_on_the_threads() -> None:
    decoder, hidden = make_case(2)
    rope = make_rope(decoder.config, hidden.shape[1], torch.float32)
    found = []
    for n_threads in (1, 3):
        with start_workers(n_threads) as workers:
            room = torch.empty_like(hidden)
            found.append(observe_block(hidden, room, decoder.blocks[0], decoder.config, rope, LLAMA_PAIRS, 7, workers))
    for module in LINEARS:
        assert torch.equal(found[0].layers[module].gram, found[1].layers[module].gram)
        assert torch.equal(found[0].layers[module].row_weights, found[1].layers[module].row_weights)
    for pair in LLAMA_PAIRS:
        assert torch.equal(found[0].mean_abs[pair.name], found[1].mean_abs[pair.name])


def test_predicted_error_is_that_of_the_blocks_output() -> None:
    """The statistics predict what small random errors in a layer's weights do to the block's output."""
    decoder, hidden = make_case(3, sequences=40, seqlen=11)
    config, weights = decoder.config, decoder.blocks[0]
    rope = make_rope(config, hidden.shape[1], torch.float32)
    with start_workers(2) as workers:
        expected = torch.empty_like(hidden)
        statistics = observe_block(hidden, expected, weights, config, rope, LLAMA_PAIRS, 3, workers)
    n_tokens = hidden.shape[0] * hidden.shape[1]
    generator = torch.Generator().manual_seed(4)
    for module in LINEARS:
        layer = statistics.layers[module]
        weight = weights[f"{module}.weight"]
        predicted = measured = 0.0
        for _ in range(6):
            error = torch.randn(weight.shape, generator=generator) * weight.std() * 1e-3
            predicted += float((((error @ layer.gram) * error).sum(1) * layer.row_weights).sum()) / n_tokens
            changed = run_block(hidden, weights | {f"{module}.weight": weight + error}, config, rope)
            relative = (changed - expected).square().sum(-1) / expected.square().sum(-1)
            measured += float(relative.mean())
        # Row and token weights are averages of what is really one number per row and token.
        assert 0.5 < predicted / measured < 2.0, module


def test_mean_activations_are_those_that_the_layers_read() -> None:
    decoder, hidden = make_case(5)
    rope = make_rope(decoder.config, hidden.shape[1], torch.float32)
    inputs: dict[str, torch.Tensor] = {}

    def keep(features: torch.Tensor, weights: dict[str, torch.Tensor], module: str) -> torch.Tensor:
        inputs[module] = features
        return apply_linear(features, weights, module)

    run_block(hidden, decoder.blocks[0], decoder.config, rope, linear=keep)
    with start_workers(1) as workers:
        room = torch.empty_like(hidden)
        statistics = observe_block(hidden, room, decoder.blocks[0], decoder.config, rope, LLAMA_PAIRS, 0, workers)
    for pair in LLAMA_PAIRS:
        for module in pair.linears:
            torch.testing.assert_close(statistics.mean_abs[pair.name], inputs[module].abs().mean((0, 1)))
