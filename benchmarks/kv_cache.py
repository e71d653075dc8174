"""What an int8 KV cache costs in perplexity, and what it saves.

    python -m benchmarks.kv_cache BUNDLE --text FILE [--windows 8] [--length 2048]

The text is cut into windows; each is read from an empty cache, and every token but the first is predicted. Printed is
the perplexity with a cache of 16 and of 8 bits, and the mean and spread of the difference over the windows.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import numpy as np

from edgeawq.runtime.bundle_text import open_bundle_text
from edgeawq.runtime.decoder import Decoder


def measure_losses(decoder: Decoder, windows: list[list[int]]) -> list[float]:
    """Mean negative log-likelihood of each window's tokens, in nats."""
    losses = []
    for window in windows:
        decoder.rewind(0)
        logits = decoder.forward_all(window[:-1]).astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
        losses.append(float(np.mean(log_sum - logits[np.arange(len(window) - 1), window[1:]])))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    arguments = parser.parse_args()
    tokens = open_bundle_text(arguments.bundle).tokenizer.encode_plain(arguments.text.read_text())
    starts = range(0, len(tokens) - arguments.length + 1, arguments.length)
    windows = [list(tokens[start : start + arguments.length]) for start in starts][: arguments.windows]
    losses = {}
    for bits in (16, 8):
        with Decoder.open(arguments.bundle, context_length=arguments.length, kv_bits=bits) as decoder:
            losses[bits] = measure_losses(decoder, windows)
            print(
                f"{bits:2} bits: perplexity {math.exp(statistics.fmean(losses[bits])):.4f}, "
                f"{decoder.kv_cache_bytes_per_token} bytes a token",
                flush=True,
            )
    changes = [100 * (math.exp(b - a) - 1) for a, b in zip(losses[16], losses[8], strict=True)]
    spread = statistics.stdev(changes) if len(changes) > 1 else 0.0
    print(f"{len(windows)} windows of {arguments.length}: {statistics.fmean(changes):+.3f} % (spread {spread:.3f})")


if __name__ == "__main__":
    main()
