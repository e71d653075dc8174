from __future__ import annotations

import math
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from edgeawq.errors import UsageError
from edgeawq.quantize import perplexity
from edgeawq.quantize.calibration import make_encoder
from edgeawq.quantize.llama import TorchDecoder
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.perplexity import CHUNK, measure_perplexity, read_evaluation_tokens, stream_model
from tests.quantize.runs import SHAPE, write_text
from tests.tiny_models import TinyCheckpoint, make_tiny_model


@pytest.fixture(scope="module")
def model() -> TinyCheckpoint:
    return make_tiny_model(1, quantized=False, **SHAPE)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("quantized", [True, False])
def test_equals_cross_entropy_of_the_whole_model(
    tie: bool, quantized: bool, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "CHUNKS_IN_MEMORY", 2)  # so that the blocks pass by twice
    monkeypatch.setattr(perplexity, "HEAD_VALUES", 70 * 320)
    model = make_tiny_model(2, quantized=quantized, group_size=32, tie=tie, **SHAPE)
    chunks = torch.randint(0, 320, (3, 200), generator=torch.Generator().manual_seed(2))
    logits = TorchDecoder(model, torch.float64)(chunks)
    wanted = F.cross_entropy(logits[:, :-1].flatten(0, 1), chunks[:, 1:].flatten())
    seen: list[tuple[int, int]] = []
    with torch.no_grad():
        found = measure_perplexity(
            stream_model(model, torch.float64), chunks, workers, lambda done, total: seen.append((done, total))
        )
        single = measure_perplexity(stream_model(model), chunks, workers)
    assert found.perplexity == pytest.approx(math.exp(float(wanted)), rel=1e-10)
    assert single.perplexity == pytest.approx(found.perplexity, rel=1e-4)
    assert (found.n_tokens, found.chunk) == (3 * 199, 200)
    assert seen == [(step, 6) for step in range(1, 7)]


def test_text_becomes_whole_chunks(tmp_path: Path, model: TinyCheckpoint) -> None:
    path = write_text(tmp_path / "a.txt", 3, 3 * CHUNK + 500)
    tokens = make_encoder(model.tokenizer, model.config)(path.read_text())
    chunks = read_evaluation_tokens(path, model, 1 << 20)
    assert chunks.shape == (len(tokens) // CHUNK, CHUNK)
    assert chunks.flatten().tolist() == tokens[: chunks.numel()]
    assert read_evaluation_tokens(path, model, 2 * CHUNK).tolist() == chunks[:2].tolist()
    assert read_evaluation_tokens(path, model, 100).tolist() == [tokens[:100]]


def test_too_little_text_is_refused(tmp_path: Path, model: TinyCheckpoint) -> None:
    path = tmp_path / "a.txt"
    path.write_text("the user")
    with pytest.raises(UsageError, match=r"a\.txt holds \d+ tokens .*at least 64"):
        read_evaluation_tokens(path, model, 1024)
    with pytest.raises(UsageError, match="10 tokens are too few"):
        read_evaluation_tokens(path, model, 10)
    with pytest.raises(UsageError, match="no file or folder"):
        read_evaluation_tokens(tmp_path / "absent.txt", model, 1024)


def test_a_hopeless_model_has_infinite_perplexity(workers: Workers) -> None:
    model = make_tiny_model(4, quantized=False, tie=False, **SHAPE)
    model.tensors["lm_head.weight"] *= 1e6
    chunks = torch.randint(0, 320, (1, 80), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert measure_perplexity(stream_model(model), chunks, workers).perplexity == math.inf


def test_blocks_are_let_go_as_the_model_passes_by(workers: Workers) -> None:
    model = make_tiny_model(5, quantized=False, **{**SHAPE, "n_layers": 6})
    streamed = stream_model(model)
    alive: list[weakref.ref[torch.Tensor]] = []
    most = [0]

    def read(layer: int) -> dict[str, torch.Tensor]:
        block = streamed.read_block(layer)
        alive.append(weakref.ref(block["mlp.up_proj.weight"]))
        most[0] = max(most[0], sum(ref() is not None for ref in alive))
        return block

    chunks = torch.randint(0, 320, (3, 80), generator=torch.Generator().manual_seed(5))
    measure_perplexity(replace(streamed, read_block=read), chunks, workers)
    assert len(alive) == 6
    # A thread may still hold the block before for a moment.
    assert most[0] <= 2
