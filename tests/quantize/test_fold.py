from __future__ import annotations

import pytest
import torch

from edgeawq.quantize.fold import fold_scales, pick_kv_heads, snap_to_float16, tie_query_heads
from edgeawq.quantize.llama import TorchDecoder
from tests.quantize.runs import LINEARS, LLAMA_PAIRS, SHAPE, measure_nmse
from tests.tiny_models import make_tiny_config, make_tiny_model

PAIR_SETS = [(pair,) for pair in LLAMA_PAIRS] + [LLAMA_PAIRS]


def make_decoder(seed: int, n_kv_heads: int, has_biases: bool) -> TorchDecoder:
    model = make_tiny_model(seed, quantized=False, **{**SHAPE, "n_kv_heads": n_kv_heads, "attention_bias": has_biases})
    decoder = TorchDecoder(model, torch.float64)
    if has_biases:
        for weights in decoder.blocks:
            for module in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
                weights[f"{module}.bias"] = torch.randn(len(weights[f"{module}.weight"]), dtype=torch.float64)
    return decoder


@pytest.mark.parametrize("pairs", PAIR_SETS, ids=lambda pairs: "+".join(pair.name for pair in pairs))
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("has_biases", [False, True])
def test_folding_keeps_the_logits(pairs: tuple, n_kv_heads: int, has_biases: bool) -> None:
    torch.manual_seed(n_kv_heads)
    decoder = make_decoder(n_kv_heads, n_kv_heads, has_biases)
    tokens = torch.randint(0, 320, (2, 19))
    wanted = decoder(tokens)
    for number, weights in enumerate(decoder.blocks):
        folded = weights
        for pair in pairs:
            width = weights[f"{pair.linears[0]}.weight"].shape[1]
            scales = torch.randn(width, dtype=torch.float64).exp()
            if pair.per_kv_head:
                scales = tie_query_heads(scales, decoder.config)
            folded = fold_scales(folded, pair, scales, decoder.config)
        touched = {f"{module}.weight" for pair in pairs for module in (*pair.linears, pair.previous)}
        assert all(not torch.equal(folded[name], weights[name]) for name in touched)
        decoder.blocks[number] = folded
    assert measure_nmse(decoder(tokens), wanted) <= 1e-10


def test_untied_scales_would_change_the_logits() -> None:
    """With grouped queries, scales that differ between heads of a group cannot be folded: the tie is needed."""
    torch.manual_seed(3)
    decoder = make_decoder(3, 2, has_biases=False)
    tokens = torch.randint(0, 320, (1, 11))
    wanted = decoder(tokens)
    pair = next(pair for pair in LLAMA_PAIRS if pair.per_kv_head)
    scales = torch.randn(64, dtype=torch.float64).exp()
    decoder.blocks[0] = fold_scales(decoder.blocks[0], pair, scales, decoder.config)
    assert measure_nmse(decoder(tokens), wanted) > 1e-4


def test_fold_leaves_its_input_alone() -> None:
    decoder = make_decoder(4, 2, has_biases=True)
    before = {name: tensor.clone() for name, tensor in decoder.blocks[0].items()}
    for pair in LLAMA_PAIRS:
        width = before[f"{pair.linears[0]}.weight"].shape[1]
        fold_scales(decoder.blocks[0], pair, torch.full((width,), 2.0, dtype=torch.float64), decoder.config)
    assert all(torch.equal(decoder.blocks[0][name], tensor) for name, tensor in before.items())
    assert {f"{module}.weight" for module in LINEARS} < set(before)


def test_tied_scales_are_equal_in_a_group_and_stay_so() -> None:
    config = make_tiny_config(**{**SHAPE, "n_kv_heads": 2})
    scales = torch.rand(64, dtype=torch.float64) + 0.1
    tied = tie_query_heads(scales, config)
    heads = tied.view(2, 2, 16)
    assert torch.equal(heads[:, 0], heads[:, 1])
    wanted = (scales.view(2, 2, 16)[:, 0] * scales.view(2, 2, 16)[:, 1]).sqrt()
    torch.testing.assert_close(heads[:, 0], wanted)
    torch.testing.assert_close(tie_query_heads(tied, config), tied)
    torch.testing.assert_close(pick_kv_heads(tied, config), wanted.flatten())


def test_without_groups_tying_changes_nothing() -> None:
    config = make_tiny_config(**{**SHAPE, "n_kv_heads": 4})
    scales = torch.rand(64, dtype=torch.float64) + 0.1
    torch.testing.assert_close(tie_query_heads(scales, config), scales)


def test_snapped_scales_give_a_float16_norm() -> None:
    torch.manual_seed(5)
    norm = torch.randn(200, dtype=torch.float64)
    scales = torch.randn(200, dtype=torch.float64).exp()
    snapped = snap_to_float16(scales, norm)
    divided = norm / snapped
    torch.testing.assert_close(divided.half().double(), divided, rtol=1e-12, atol=0)
    torch.testing.assert_close(snapped, scales, rtol=2**-10, atol=0)


def test_channels_that_leave_float16_keep_scale_one() -> None:
    norm = torch.tensor([0.0, 1e-9, 60000.0, 1.0])
    snapped = snap_to_float16(torch.tensor([3.0, 2.0, 1e-3, 2.0]), norm)
    assert snapped.tolist() == [1.0, 1.0, 1.0, 2.0]
