"""What tracing costs a decoder step, mark by mark.

    python -m benchmarks.trace_cost BUNDLE [--rounds 40] [--threads 1]

Steps with and without a trace take turns; compared are the shortest ones, which nothing has disturbed. A model with
short steps shows the most.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from edgeawq.profiling.measure.trace import Tracer
from edgeawq.runtime.decoder import Decoder

STEPS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    best = {True: float("inf"), False: float("inf")}
    with Decoder.open(arguments.bundle, n_threads=arguments.threads, context_length=2 * STEPS) as decoder:
        tracer = Tracer(decoder)
        for _ in range(arguments.rounds):
            for traced in (True, False):
                tracer.switch(traced)
                decoder.rewind(0)
                for _ in range(STEPS):
                    start = time.perf_counter()
                    decoder.forward([5])
                    best[traced] = min(best[traced], time.perf_counter() - start)
        before = tracer.read()
        tracer.switch(True)
        decoder.forward([5])
        marks = int(tracer.read().since(before).calls.sum())
    added = best[True] - best[False]
    print(
        f"{1e6 * best[False]:.1f} µs a step, {1e6 * best[True]:.1f} µs traced: {added / best[False]:+.2%}, "
        f"{marks} marks, {1e9 * added / marks:.1f} ns each"
    )


if __name__ == "__main__":
    main()
