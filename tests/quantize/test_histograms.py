from __future__ import annotations

import torch

from edgeawq.quantize.histograms import CHANNEL_BINS, WEIGHT_BINS, count_channels, count_weights, measure_histograms
from edgeawq.quantize.parallel import start_workers
from edgeawq.quantize.perplexity import stream_model
from tests.quantize.runs import SHAPE
from tests.tiny_models import make_tiny_model


def test_every_weight_and_channel_is_counted() -> None:
    model = make_tiny_model(1, quantized=False, **SHAPE)
    with start_workers(2) as workers, torch.no_grad():
        found = measure_histograms(stream_model(model), torch.randint(0, 320, (2, 50)), workers)
    assert sum(found.weights["gate_proj"].counts) == 2 * 64 * 96
    assert sum(found.weights["k_proj"].counts) == 2 * 64 * 32
    assert {name: sum(histogram.counts) for name, histogram in found.channels.items()} == {
        "qkv": 2 * 64,
        "o": 2 * 64,
        "gate_up": 2 * 64,
        "down": 2 * 96,
    }


def test_bins() -> None:
    weight = torch.full((10, 10), 0.01)
    weight[0, 0], weight[0, 1] = 100.0, -100.0  # 7.07 times the root mean square
    counts = count_weights(weight)
    assert len(counts) == WEIGHT_BINS and int(counts.sum()) == 100
    assert int(counts[WEIGHT_BINS // 2]) == 98
    assert int(counts[int((7.07 + 8) * 4)]) == int(counts[int((-7.07 + 8) * 4)]) == 1
    channels = count_channels(torch.tensor([1.0, 1.0, 1.0, 8.5, 0.0, 1e9]))
    assert len(channels) == CHANNEL_BINS
    assert int(channels[CHANNEL_BINS // 2]) == 3
    assert int(channels[CHANNEL_BINS // 2 + 12]) == 1  # 8.5 is a little over three powers of two, four bins each
    assert int(channels[0]) == int(channels[-1]) == 1  # beyond the range
    assert count_weights(torch.zeros(4, 4)).sum() == 16
