"""The outcome of a quantization, for `quantization_report.json`. No times and no paths: same seed, same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import edgeawq
from edgeawq.checkpoints.awq_folder import PER_CHANNEL
from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.tensor_shapes import list_linear_shapes
from edgeawq.quantize.block import BlockOutcome
from edgeawq.quantize.mixed import count_kept_bits
from edgeawq.quantize.settings import QuantizeSettings

REPORT_FILE = "quantization_report.json"
REPORT_VERSION = 1


@dataclass(frozen=True)
class CalibrationReport:
    """Which text the statistics come from."""

    source: str
    n_documents: int
    n_tokens: int
    n_sequences: int
    seqlen: int


@dataclass(frozen=True)
class EvaluationReport:
    """Perplexities on one text, plain chunks."""

    text: str
    n_tokens: int
    chunk: int
    perplexity: dict[str, float]  # "float", "rtn", and the method


@dataclass(frozen=True)
class QuantizationReport:
    """Everything a run decided and measured."""

    model: str
    settings: QuantizeSettings
    group_size: int  # used in the checkpoint
    head_group_size: int | None  # None: embedding and head are left in float
    calibration: CalibrationReport | None  # None: method rtn looks at the weights only
    blocks: tuple[BlockOutcome, ...]  # empty for rtn
    evaluation: EvaluationReport | None
    bits_per_weight: float  # of the quantized linear layers, scales and zeros included
    notes: tuple[str, ...] = field(default=())

    @property
    def reverted_blocks(self) -> tuple[int, ...]:
        """Blocks that the method did not improve, and that are rounded to nearest instead."""
        return tuple(number for number, block in enumerate(self.blocks) if block.is_reverted)

    @property
    def starved_experts(self) -> int:
        """Experts that tokens had to be forced through, over all blocks."""
        return sum(len(block.starved_experts) for block in self.blocks)

    def describe(self) -> dict[str, object]:
        """The report as JSON values."""
        return {
            "format": REPORT_VERSION,
            "tool": {"name": "edgeawq", "version": edgeawq.__version__},
            **asdict(self),
            "reverted_blocks": list(self.reverted_blocks),
        }

    def to_json(self) -> bytes:
        """The file's content."""
        return (json.dumps(round_floats(self.describe()), indent=1, ensure_ascii=False) + "\n").encode()


def round_floats(value: object) -> object:
    """Floats to seven significant digits, everything else as it is."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: round_floats(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [round_floats(item) for item in value]
    return value


def count_bits_per_weight(
    config: ModelConfig, layer_bits: Mapping[str, int], group_size: int, kept_share: float = 0.0
) -> float:
    """Bits per weight of the body, with a float16 scale and a zero of the layer's bits for every group.

    kept_share: of the input channels, which take 16 bits a weight.
    """
    shapes = list_linear_shapes(config)
    total, n_weights = count_kept_bits(shapes, layer_bits, kept_share), 0
    for module, (out_features, in_features) in shapes.items():
        bits = layer_bits[module]
        groups = 1 if group_size == PER_CHANNEL else in_features // group_size
        total += out_features * (in_features * bits + groups * (16 + bits))
        n_weights += out_features * in_features
    return total / n_weights
