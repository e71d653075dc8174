from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from edgeawq.errors import UsageError
from edgeawq.quantize.evaluate import keep_reference, score_model
from edgeawq.quantize.parallel import start_workers
from edgeawq.quantize.perplexity import stream_model
from edgeawq.quantize.scores import EvaluationSetting, make_windows
from edgeawq.quantize.study_channels import (
    Bench,
    ChannelMeans,
    choose_channels,
    count_changed_steps,
    measure_channel_means,
    study_exponent,
    study_salient,
    study_scale,
    top_channels,
)
from tests.quantize.runs import LINEARS, SHAPE
from tests.tiny_models import make_tiny_model


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A tiny model at 3 bits, measured on random tokens."""
    source = stream_model(make_tiny_model(int(torch.randint(1 << 20, ())), quantized=False, **SHAPE))
    windows = make_windows(torch.randint(0, 320, (300,)), EvaluationSetting(300, 100, 100))
    with start_workers(2) as workers, torch.no_grad(), keep_reference(source, windows) as states:
        base = score_model(source, windows, workers, fill=states)
        yield Bench(source, windows, states, base, workers, 3, 32)


def make_chunks() -> torch.Tensor:
    return torch.randint(0, 320, (2, 64))


@pytest.fixture
def means(bench: Bench) -> ChannelMeans:
    return measure_channel_means(bench.model, make_chunks(), bench.workers)


def test_means_are_those_of_the_inputs(bench: Bench, means: ChannelMeans) -> None:
    assert len(means) == 2 and set(means[0]) == set(LINEARS)
    assert means[0]["self_attn.q_proj"] is means[0]["self_attn.v_proj"]
    assert means[1]["mlp.down_proj"].shape == (96,)
    # The first norm's output has a root mean square of about its weight; a mean of sizes lies below it.
    norm = bench.model.read_block(0)["input_layernorm.weight"]
    assert bool((means[0]["self_attn.q_proj"] < 4 * norm.abs() + 1e-6).all())


def test_criteria() -> None:
    weight = torch.zeros(4, 10)
    weight[:, 3] = 9.0
    sizes = torch.arange(10.0)
    generator = torch.Generator().manual_seed(1)
    assert choose_channels("activation", weight, sizes, 0.2, generator).tolist() == [9, 8]
    assert choose_channels("weight-norm", weight, sizes, 0.01, generator).tolist() == [3]
    drawn = choose_channels("random", weight, sizes, 0.5, generator)
    assert len(set(drawn.tolist())) == 5


def test_keeping_every_channel_is_the_float_model(bench: Bench, means: ChannelMeans) -> None:
    steps: list[tuple[str, int, int]] = []
    rows = study_salient(bench, means, [0.05, 1.0], 0, lambda *step: steps.append(step))
    assert [row["criterion"] for row in rows] == ["float", "none", *["activation", "weight norm", "random"] * 2]
    kept = {(row["criterion"], row["percent"]): float(str(row["kl"])) for row in rows[1:]}
    rounded = kept["none", 0.0]
    assert rounded > 1e-3
    for criterion in ("activation", "weight norm", "random"):
        assert kept[criterion, 100.0] < rounded * 1e-2  # float16 is all that is left
    assert steps[-1] == ("done", 6, 6)
    again = study_salient(bench, means, [0.05], 0, lambda *step: None)
    assert again[2:] == rows[2:5]  # the seed decides, not the threads


def test_a_factor_of_one_changes_nothing(bench: Bench, means: ChannelMeans) -> None:
    rows = study_scale(bench, means, make_chunks(), [1.0, 2.0], 0.05, lambda *step: None)
    plain, doubled = rows
    assert (plain["changed_percent"], plain["step_ratio"], plain["salient_error"]) == (0.0, 1.0, 1.0)
    assert float(str(doubled["changed_percent"])) > 0
    ratio = float(str(doubled["step_ratio"]))
    assert 1.0 < ratio < 2.0  # only groups whose largest weight is salient need a coarser step
    assert doubled["salient_error"] == pytest.approx(ratio / 2)
    powers = study_exponent(bench, means, make_chunks(), [0.0, 0.5], lambda *step: None)
    assert powers[0]["perplexity"] == pytest.approx(plain["perplexity"], rel=1e-5)
    assert powers[0]["kl"] != powers[1]["kl"]


def test_only_groups_with_a_salient_channel_are_counted(bench: Bench, means: ChannelMeans) -> None:
    counts = count_changed_steps(bench, means, 2.0, 0.01)
    rows = sum(
        weight.shape[0]
        for layer in range(2)
        for name, weight in bench.model.read_block(layer).items()
        if weight.ndim == 2
    )
    assert counts.n_groups == rows  # one channel of each layer, so one group of every row
    assert len(top_channels(means[0]["mlp.down_proj"], 0.05)) == 5


def test_shares_that_make_no_sense(bench: Bench, means: ChannelMeans) -> None:
    for share in (0.0, -0.1, 1.5):
        with pytest.raises(UsageError, match="of the channels make no sense"):
            study_salient(bench, means, [share], 0, lambda *step: None)
