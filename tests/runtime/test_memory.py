"""What a decoder keeps in memory: its weights, once and as they lie in the file, its KV cache, and little else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.shapes import Shape, write_bundle

pytest.importorskip("numba", reason="the kernels are built here")

SHAPE = Shape("memory-test", 1024, 2816, 4, 16, 4, 32000, True)
CONTEXT = 2048
FEW_MEGABYTES = 8e6

PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
from edgeawq.runtime.decoder import Decoder
from edgeawq.runtime.native import load_object

def resident():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem")}

folder, context = sys.argv[1], int(sys.argv[2])
# Python, NumPy and the linker take memory of their own, whatever the model
native = load_object(next(Path(folder, "kernels").iterdir()).read_bytes())
before = resident()
with Decoder.open(folder, n_threads=2, context_length=context) as decoder:
    opened = resident()
    tokens = [int(token) for token in np.random.default_rng(0).integers(0, decoder.config.vocab_size, context - 8)]
    decoder.forward(tokens)
    for token in tokens[:4]:
        decoder.forward([token])
    print(json.dumps([before, opened, resident()]))
"""


def test_resident_memory_is_the_weights_the_cache_and_a_few_megabytes(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    folder = tmp_path / "random.edgeawq"
    write_bundle(SHAPE, folder)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(CONTEXT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, opened, after = json.loads(done.stdout)
    weights = (folder / "weights.bin").stat().st_size
    cache = 2 * 2 * SHAPE.n_layers * SHAPE.n_kv_heads * SHAPE.head_dim * CONTEXT  # keys and values, float16
    grown = {name: after[name] - before[name] for name in after}
    assert weights > 30e6 and cache > 8e6  # the test would see either one twice
    # nothing of the weights is copied: they are pages of the file, all of them after a pass over the prompt
    assert weights * 0.95 < grown["RssFile"] < weights + FEW_MEGABYTES
    assert cache * 0.9 < grown["RssAnon"] + grown["RssShmem"] < cache + FEW_MEGABYTES
    # opening reads no weights
    assert opened["RssFile"] - before["RssFile"] < FEW_MEGABYTES
