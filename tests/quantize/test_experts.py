"""Mixtures of experts: the same output as transformers, exact folding with the router, and experts without tokens."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgeawq.checkpoints.experts import list_experts, list_routers
from edgeawq.checkpoints.open_model import open_model
from edgeawq.checkpoints.tensor_shapes import list_block_linears, list_linear_shapes
from edgeawq.errors import UnsupportedModelError
from edgeawq.quantize.fold import fold_scales, tie_query_heads
from edgeawq.quantize.layer_errors import compare_blocks
from edgeawq.quantize.llama import TorchDecoder, load_decoder, make_rope, run_block
from edgeawq.quantize.observe import BlockStatistics, compute_gram, observe_block
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.perplexity import stream_model
from edgeawq.quantize.pipeline import Evaluation, quantize_model
from edgeawq.quantize.recipe import find_recipe, name_activation
from edgeawq.quantize.report import REPORT_FILE
from edgeawq.quantize.starved_experts import MIN_EXPERT_TOKENS, feed_starved_experts, find_starved
from tests.quantize.runs import measure_nmse, quick_settings, read_folder, write_text
from tests.quantize.tiny_experts import (
    EXPERT_FAMILIES,
    N_EXPERTS,
    PER_TOKEN,
    make_expert_model,
    starve,
    write_expert_folder,
)
from tests.tiny_models import TinyCheckpoint

both_families = pytest.mark.parametrize("family", EXPERT_FAMILIES)


@both_families
def test_same_logits_as_transformers_from_the_folder_it_writes(tmp_path: Path, family: str) -> None:
    folder, reference = write_expert_folder(tmp_path / "model", 1, family)
    tokens = torch.randint(0, 320, (2, 45), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = reference.double()(tokens).logits
    model = open_model(str(folder))
    assert model.config.experts is not None
    assert (model.config.experts.count, model.config.experts.per_token) == (N_EXPERTS, PER_TOKEN)
    # transformers computes shares in float32, whatever the model's type.
    assert measure_nmse(load_decoder(model, torch.float64)(tokens), wanted) < 1e-12


@both_families
def test_folding_keeps_the_logits_exactly_because_the_router_is_folded_too(family: str) -> None:
    torch.manual_seed(2)
    decoder = TorchDecoder(make_expert_model(2, family), torch.float64)
    tokens = torch.randint(0, 320, (2, 40))
    wanted = decoder(tokens)
    pairs = find_recipe(decoder.config)
    float_blocks = list(decoder.blocks)
    for is_router_folded in (True, False):
        for number, weights in enumerate(float_blocks):
            folded = weights
            for pair in pairs:
                scales = torch.randn(weights[f"{pair.linears[0]}.weight"].shape[1], dtype=torch.float64).exp()
                if pair.per_kv_head:
                    scales = tie_query_heads(scales, decoder.config)
                folded = fold_scales(folded, pair, scales, decoder.config)
            if not is_router_folded:
                folded |= {f"{module}.weight": weights[f"{module}.weight"] for module in list_routers(decoder.config)}
            decoder.blocks[number] = folded
        error = measure_nmse(decoder(tokens), wanted)
        assert error < 1e-20 if is_router_folded else error > 1e-3


def observe(model: TinyCheckpoint, hidden: torch.Tensor, workers: Workers) -> BlockStatistics:
    decoder = TorchDecoder(model)
    rope = make_rope(model.config, hidden.shape[1], torch.float32)
    pairs = find_recipe(model.config)
    found = observe_block(hidden, torch.empty_like(hidden), decoder.blocks[0], model.config, rope, pairs, 0, workers)
    return feed_starved_experts(found, hidden, decoder.blocks[0], model.config, rope, workers)


def make_hidden(model: TinyCheckpoint, shape: tuple[int, int]) -> torch.Tensor:
    tokens = torch.randint(0, 320, shape, generator=torch.Generator().manual_seed(4))
    return F.embedding(tokens, torch.from_numpy(model.tensor("model.embed_tokens.weight")))


@both_families
def test_every_expert_is_observed_on_the_tokens_it_gets(family: str, workers: Workers) -> None:
    model = make_expert_model(3, family)
    hidden = make_hidden(model, (6, 64))
    statistics = observe(model, hidden, workers)
    assert find_starved(statistics, model.config) == {}
    experts = list_experts(model.config)
    assert set(statistics.layers) == set(list_block_linears(model.config))
    assert sum(statistics.layers[part.gate].n_tokens for part in experts) == PER_TOKEN * 6 * 64
    for part in experts:
        assert statistics.layers[part.gate].gram is statistics.layers[part.up].gram
        assert statistics.layers[part.down].n_tokens == statistics.layers[part.gate].n_tokens
    grams = torch.stack([statistics.layers[part.gate].gram for part in experts])
    assert not torch.allclose(grams[0], grams[1], rtol=0.05)


@both_families
def test_a_starved_expert_gets_the_tokens_its_router_likes_best(family: str, workers: Workers) -> None:
    model = make_expert_model(5, family)
    starve(model, 1)
    hidden = make_hidden(model, (6, 64))
    statistics = observe(model, hidden, workers)
    part = list_experts(model.config)[1]
    starved = find_starved(statistics, model.config)
    assert starved.keys() == {part.name}
    assert starved[part.name] < MIN_EXPERT_TOKENS
    # By hand: the best tokens of every sequence by the router's share for this expert.
    decoder = TorchDecoder(model)
    rope = make_rope(model.config, 64, torch.float32)
    router = next(iter(list_routers(model.config)))
    count = -(-MIN_EXPERT_TOKENS // 6)
    rows = []

    def collect(features: torch.Tensor, weights: dict[str, torch.Tensor], module: str) -> torch.Tensor:
        output = F.linear(features, weights[f"{module}.weight"], weights.get(f"{module}.bias"))
        if module == router:
            rows.append(features[0][output[0].softmax(-1)[:, 1].argsort(descending=True)[:count]])
        return output

    for sequence in hidden:
        run_block(sequence[None], decoder.blocks[0], model.config, rope, linear=collect)
    wanted = compute_gram(torch.cat(rows))
    found = statistics.layers[part.gate].gram
    torch.testing.assert_close(found / found.diagonal().sum(), wanted / wanted.diagonal().sum(), rtol=1e-4, atol=1e-7)
    assert torch.linalg.matrix_rank(statistics.layers[part.down].gram) > 8
    assert statistics.mean_abs[name_activation(part)].min() > 0
    others = [statistics.layers[other.down].row_weights.mean() for other in list_experts(model.config) if other != part]
    torch.testing.assert_close(statistics.layers[part.down].row_weights.mean(), torch.stack(others).mean())


@pytest.mark.parametrize(
    ("family", "method"), [("mixtral", "awq+gptq"), ("qwen2_moe", "awq"), ("mixtral", "awq+round")]
)
def test_a_quantized_mixture_is_close_to_its_float_self(
    tmp_path: Path, text: Path, workers: Workers, family: str, method: str
) -> None:
    model = make_expert_model(6, family)
    starve(model, 2)
    settings = quick_settings(method=method, bits=8, rounding_steps=4, head_bits=16)
    report = quantize_model(model, tmp_path / "out", settings, calibration=text, n_threads=2)
    written = open_model(str(tmp_path / "out"))
    assert written.config == model.config
    routers = list_routers(model.config)
    for module in list_linear_shapes(model.config):
        assert written.quantized_linear(module) is not None
    for router in routers:
        assert written.quantized_linear(f"model.layers.0.{router}") is None
    tokens = torch.randint(0, 320, (1, 40), generator=torch.Generator().manual_seed(6))
    blocks = compare_blocks(stream_model(model), stream_model(written), tokens, workers)
    # A token on the edge between two experts may go the other way: layers are compared on the same tokens.
    assert max(error for block in blocks for error in block.layers.values()) < 1e-3
    assert blocks[0].block < 0.02
    starved = list_experts(model.config)[2].name
    assert all(starved in block.starved_experts for block in report.blocks)
    described = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert described["blocks"][0]["starved_experts"][starved] < MIN_EXPERT_TOKENS


@both_families
def test_at_four_bits_awq_is_better_than_rounding_and_the_bytes_do_not_depend_on_threads(
    tmp_path: Path, text: Path, family: str
) -> None:
    model = make_expert_model(7, family, tie=False)
    evaluation = Evaluation(write_text(tmp_path / "texts" / "test.txt", 9, 1500), 300)
    for name, n_threads in (("a", 1), ("b", 3)):
        report = quantize_model(
            model,
            tmp_path / name / "out",
            quick_settings(),
            calibration=text,
            evaluation=evaluation,
            n_threads=n_threads,
        )
    assert read_folder(tmp_path / "a" / "out") == read_folder(tmp_path / "b" / "out")
    assert report.reverted_blocks == ()
    assert report.evaluation is not None
    assert all(np.isfinite(value) for value in report.evaluation.perplexity.values())
    config = json.loads((tmp_path / "a" / "out" / "config.json").read_text())
    assert config["architectures"] == [{"mixtral": "MixtralForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM"}[family]]
    assert config["quantization_config"]["modules_to_not_convert"] == list(list_routers(model.config))


def test_layers_without_experts_are_refused(tmp_path: Path) -> None:
    folder, _ = write_expert_folder(tmp_path / "model", 1, "qwen2_moe")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mlp_only_layers": [0]}))
    with pytest.raises(UnsupportedModelError, match="some layers of the model have experts"):
        open_model(str(folder))


@both_families
def test_a_bundle_of_experts_is_refused_in_words(tmp_path: Path, family: str) -> None:
    from device_profiles.profile import load_profile
    from packager.pack import pack_checkpoint

    quantize_model(make_expert_model(8, family), tmp_path / "awq", quick_settings(method="rtn"))
    with pytest.raises(UnsupportedModelError, match="a mixture of 5 experts"):
        pack_checkpoint(open_model(str(tmp_path / "awq")), load_profile("pi4"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
