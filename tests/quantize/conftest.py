from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeawq.quantize.block import QuantizedBlock
from edgeawq.quantize.block_store import BlockStore
from edgeawq.quantize.parallel import Workers, start_workers
from tests.quantize.runs import write_text


@pytest.fixture(autouse=True, scope="package")
def _one_thread_per_operation() -> Iterator[None]:
    """Tiny tensors gain nothing from torch's thread pool, whose threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def workers() -> Iterator[Workers]:
    with start_workers(2) as pool, torch.no_grad():
        yield pool


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A calibration text in a folder of its own."""
    (tmp_path / "texts").mkdir()
    return write_text(tmp_path / "texts" / "calibration.txt", 1)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> dict[int, QuantizedBlock]:
    """Every block as it was quantized, by layer."""
    blocks: dict[int, QuantizedBlock] = {}
    save = BlockStore.save

    def record(store: BlockStore, layer: int, quantized: QuantizedBlock, *rest: Any) -> None:
        blocks[layer] = quantized
        save(store, layer, quantized, *rest)

    monkeypatch.setattr(BlockStore, "save", record)
    return blocks
