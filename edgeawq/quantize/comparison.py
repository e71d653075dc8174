"""The outcome of `edgeawq eval`: one result a model, as data that tables, JSON and pages are made from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

import edgeawq
from edgeawq.quantize.histograms import ModelHistograms
from edgeawq.quantize.layer_errors import BlockErrors
from edgeawq.quantize.report import round_floats
from edgeawq.quantize.scores import EvaluationSetting, ModelScore
from edgeawq.quantize.storage import Storage

COMPARISON_VERSION = 1


@dataclass(frozen=True)
class TaskScore:
    """A multiple-choice task of lm-evaluation-harness."""

    accuracy: float
    standard_error: float | None
    normalized_accuracy: float | None = None  # choices weighed by their length, where the task has it


@dataclass(frozen=True)
class ModelResult:
    """What was measured of one model."""

    name: str  # as the user wrote it
    kind: str  # "float" | "quantized" | "bundle" | "analysis"
    is_reference: bool
    score: ModelScore
    storage: Storage
    blocks: tuple[BlockErrors, ...] = ()
    tasks: dict[str, TaskScore] = field(default_factory=dict)
    remark: str = ""  # why a figure is missing


@dataclass(frozen=True)
class Comparison:
    """Models side by side on one text."""

    text: str
    setting: EvaluationSetting
    n_windows: int
    n_scored: int
    results: tuple[ModelResult, ...]
    histograms: ModelHistograms | None = None  # of the reference

    @property
    def reference(self) -> ModelResult | None:
        """The float model that the others are compared with."""
        return next((result for result in self.results if result.is_reference), None)

    def describe(self) -> dict[str, object]:
        """The comparison as JSON values."""
        values = asdict(self)
        values["setting"] |= {"kind": "strided" if self.setting.is_strided else "plain"}
        rounded = drop_infinities(round_floats(values))
        assert isinstance(rounded, dict)
        return {
            "format": COMPARISON_VERSION,
            "tool": {"name": "edgeawq", "version": edgeawq.__version__},
            **rounded,
        }


def shorten_names(names: list[str]) -> list[str]:
    """Last parts of paths where these are enough to tell the models apart."""
    short = [name.rstrip("/").rpartition("/")[2] or name for name in names]
    return short if len(set(short)) == len(short) else names


def drop_infinities(value: object) -> object:
    """NaN and infinity as None, because JSON has neither; everything else as it is."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: drop_infinities(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [drop_infinities(item) for item in value]
    return value
