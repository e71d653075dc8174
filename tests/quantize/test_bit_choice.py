from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch

from edgeawq.checkpoints.open_model import open_model
from edgeawq.checkpoints.tensor_shapes import list_linear_shapes
from edgeawq.errors import UsageError
from edgeawq.quantize import run_blocks
from edgeawq.quantize.bit_choice import BitOptions, choose_bits, measure_options
from edgeawq.quantize.grid import GridFormat
from edgeawq.quantize.llama import make_rope, read_block, run_block
from edgeawq.quantize.parallel import start_workers
from edgeawq.quantize.pipeline import quantize_model
from tests.quantize.runs import LINEARS, LLAMA_PAIRS, SHAPE, quick_settings, read_folder, write_text
from tests.tiny_models import make_tiny_model

BITS = (2, 3, 4, 8)


def make_options(source: random.Random, count: int) -> list[BitOptions]:
    """Layers of one size whose error falls by a factor of 4 a bit."""
    found = []
    for number in range(count):
        scale = 10 ** source.uniform(-2, 2)
        found.append(BitOptions((f"layer{number}",), {b: scale * 4.0**-b for b in BITS}, {b: 1000 * b for b in BITS}))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_close_to_the_best_of_all(seed: int) -> None:
    source = random.Random(seed)
    options = make_options(source, 5)
    target = source.uniform(2.2, 7.0)
    chosen = choose_bits(options, 5000, target)
    assert sum(chosen.values()) <= 5 * target

    def rate(bits: tuple[int, ...]) -> float:
        return sum(option.costs[b] for option, b in zip(options, bits, strict=True))

    best = min(rate(bits) for bits in itertools.product(BITS, repeat=5) if sum(bits) <= 5 * target)
    worst = max(rate(bits) for bits in itertools.product(BITS, repeat=5))
    assert rate(tuple(chosen.values())) - best < 0.05 * (worst - best)


def test_what_is_sensitive_gets_more() -> None:
    options = [
        BitOptions(("dull",), {b: 0.01 * 4.0**-b for b in BITS}, {b: 1000 * b for b in BITS}),
        BitOptions(("keen", "twin"), {b: 5.0 * 4.0**-b for b in BITS}, {b: 1000 * b for b in BITS}),
    ]
    assert choose_bits(options, 2000, 3.0) == {"dull": 2, "keen": 4, "twin": 4}
    assert choose_bits(options, 2000, 2.0) == {"dull": 2, "keen": 2, "twin": 2}
    assert choose_bits(options, 2000, 100.0) == {"dull": 8, "keen": 8, "twin": 8}
    with pytest.raises(UsageError, match="fewest are 2.000") as caught:
        choose_bits(options, 2000, 1.9)
    assert caught.value.remedy


def test_costs_fall_with_bits_and_count_the_whole_block() -> None:
    model = make_tiny_model(3, quantized=False, **SHAPE)
    weights = read_block(model, 0, torch.float32)
    rope = make_rope(model.config, 48, torch.float32)
    hidden = torch.randn(6, 48, 64, generator=torch.Generator().manual_seed(3))
    outputs = torch.empty_like(hidden)
    forms = {module: tuple(GridFormat(bits, 32) for bits in BITS) for module in LINEARS}
    forms["self_attn.k_proj"] = (GridFormat(8, 32),)
    with start_workers(2) as workers, torch.no_grad():
        options = measure_options(
            "model.layers.0.", hidden, outputs, weights, forms, model.config, LLAMA_PAIRS, 1, workers
        )
        assert torch.allclose(outputs, run_block(hidden, weights, model.config, rope), atol=1e-5)
    modules = [tuple(module.rpartition(".")[2] for module in option.modules) for option in options]
    assert modules == [("q_proj", "v_proj"), ("k_proj",), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    for option in options:
        costs = list(option.costs.values())
        assert costs == sorted(costs, reverse=True)
    down = options[-1]
    assert down.sizes[3] == 64 * (96 * 3 + 3 * 19)


@pytest.mark.parametrize("target", [2.8, 3.5, 5.0])
def test_the_average_is_met(tmp_path: Path, target: float) -> None:
    model = make_tiny_model(4, quantized=False, **SHAPE)
    text = write_text(tmp_path / "text.txt", 1)
    settings = quick_settings(target_bpw=target, bits_for=((r"0\.mlp\.down", 4),))
    report = quantize_model(model, tmp_path / "out", settings, calibration=text, n_threads=2)
    assert target - 0.4 < report.bits_per_weight <= target
    written = open_model(str(tmp_path / "out"))
    bits = {}
    for module in list_linear_shapes(model.config):
        linear = written.quantized_linear(module)
        assert linear is not None
        bits[module] = linear.bits
    assert bits["model.layers.0.mlp.down_proj"] == 4
    assert len(set(bits.values())) > 1
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        assert len({bits[f"{prefix}.self_attn.{name}_proj"] for name in "qkv"}) == 1
        assert bits[f"{prefix}.mlp.gate_proj"] == bits[f"{prefix}.mlp.up_proj"]


def test_the_choice_is_not_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_model(5, quantized=False, **SHAPE)
    text = write_text(tmp_path / "text.txt", 1)
    settings = quick_settings(target_bpw=3.5)
    quantize_model(model, tmp_path / "whole", settings, calibration=text, n_threads=1)
    quantize_block = run_blocks.quantize_block

    def stop(layer: int, *rest: object) -> object:
        if layer == 1:
            raise KeyboardInterrupt
        return quantize_block(layer, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(run_blocks, "quantize_block", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize_model(model, tmp_path / "out", settings, calibration=text, n_threads=1)

    def refuse(*_: object) -> None:
        raise AssertionError("the choice was there")

    monkeypatch.setattr(run_blocks, "measure_options", refuse)
    quantize_model(model, tmp_path / "out", settings, calibration=text, n_threads=1)
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "whole")


def test_it_needs_a_method_that_looks_at_activations() -> None:
    with pytest.raises(UsageError, match="--target-bpw has no meaning with --method rtn"):
        quick_settings(method="rtn", target_bpw=3.5)
