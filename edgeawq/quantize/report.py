"""The outcome of a quantization, for `quantization_report.json`. No times and no paths: same seed, same bytes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

import edgeawq
from edgeawq.quantize.block import BlockOutcome
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
    perplexity: dict[str, float]  # "float", "rtn", "awq"


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
        """Blocks that AWQ did not improve, and that are rounded to nearest instead."""
        return tuple(number for number, block in enumerate(self.blocks) if block.is_reverted)

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


def count_bits_per_weight(bits: int, group_size: int) -> float:
    """Bits per weight with a float16 scale and a zero of `bits` bits for every group."""
    return bits + (16 + bits) / group_size
