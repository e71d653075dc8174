"""One quantization in progress: what its stages share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from edgeawq.checkpoints.model import Checkpoint
from edgeawq.quantize.activations import count_bytes
from edgeawq.quantize.block import QuantizedBlock, quantize_block_rtn
from edgeawq.quantize.block_store import BlockStore
from edgeawq.quantize.cluster import Cluster
from edgeawq.quantize.devices import AUTO
from edgeawq.quantize.grid import GridFormat
from edgeawq.quantize.llama import read_block
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.settings import QuantizeSettings, choose_forms, choose_head_group_size

EMBEDDING, HEAD, FINAL_NORM = "model.embed_tokens", "lm_head", "model.norm"


@dataclass(frozen=True)
class Progress:
    """Where a run is: done of total in one stage, with a word on the last step."""

    stage: str  # "calibrate" | "quantize" | "evaluate" | "write"
    done: int
    total: int
    detail: str = ""


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class ClusterRun:
    """An executor for the blocks, and how its processes find the model."""

    cluster: Cluster
    model: str | Checkpoint
    n_threads: int
    device: str = AUTO  # as `choose_devices` takes it, where a job runs


@dataclass(frozen=True)
class Run:
    """One quantization in progress: what its stages share."""

    checkpoint: Checkpoint
    settings: QuantizeSettings
    layer_bits: dict[str, int]  # by module
    group_size: int
    store: BlockStore
    workers: Workers
    on_progress: OnProgress
    activation_bytes: int  # that may be in memory; more are kept in files

    @property
    def head_group_size(self) -> int:
        """The group size of embedding and head."""
        return choose_head_group_size(self.checkpoint.config, self.group_size)

    def choose_forms(self, layer: int) -> dict[str, GridFormat]:
        """The grids of one block's layers."""
        return choose_forms(layer, self.layer_bits, self.checkpoint.config, self.settings, self.group_size)

    def fits(self, shape: tuple[int, int, int]) -> bool:
        """Whether activations of a shape are kept in memory: at most four of that size are alive at once."""
        return 4 * count_bytes(shape) <= self.activation_bytes

    def round_block(self, layer: int) -> QuantizedBlock:
        """One block rounded to nearest."""
        return quantize_block_rtn(read_block(self.checkpoint, layer, torch.float32), self.choose_forms(layer))
