"""Checkpoints made to look at, not to run: float folders whose weights were rounded and stored as what they stand for.

config.json says so under edgeawq's own mark, so that nobody takes such a folder for a float model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.json_fields import JsonFields
from edgeawq.errors import UnsupportedModelError

OWN_MARK, ANALYSIS_FIELD = "edgeawq", "analysis"  # in config.json


@dataclass(frozen=True)
class Analysis:
    """How the weights of such a checkpoint were made."""

    method: str
    bits: int  # of a rounded weight
    bits_per_weight: float  # that the blocks would take in a format of their own
    kept: str  # what stayed in float16, in words


def describe_analysis(analysis: Analysis) -> dict[str, object]:
    """What config.json says of it, under OWN_MARK."""
    return {ANALYSIS_FIELD: asdict(analysis)}


def read_analysis(config: ModelConfig) -> Analysis | None:
    """What a checkpoint's config.json says of it; None for every ordinary model."""
    mark = config.extra.get(OWN_MARK)
    if not isinstance(mark, dict) or ANALYSIS_FIELD not in mark:
        return None
    fields = JsonFields(mark, f"config.json: {OWN_MARK}").child(ANALYSIS_FIELD)
    return Analysis(
        method=str(fields.values.get("method")),
        bits=fields.read_int("bits"),
        bits_per_weight=fields.read_float("bits_per_weight"),
        kept=str(fields.values.get("kept")),
    )


def refuse_analysis(config: ModelConfig, where: str) -> None:
    """Raise UnsupportedModelError for a checkpoint that is for analysis only."""
    found = read_analysis(config)
    if found is not None:
        raise UnsupportedModelError(
            f"{where} was made with --method {found.method}, for analysis only: its weights are rounded to "
            f"{found.bits} bits but stored in float16, and {found.kept}; no kernel runs such layers",
            remedy="quantize the float model with another method, such as awq; `edgeawq eval` takes this one",
        )
