"""Whether a device is as fast as it was and as it should be: its newest measured profile against its past."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edgeawq.profiling.compare import Metric, list_metrics
from edgeawq.profiling.schema import Profile

WELL_BELOW = 0.8  # of the median of its past: no ordinary noise, and worth a look
WATCHED = ("decode.", "prefill.", "memory.DRAM", "compute.", "storage")


@dataclass(frozen=True)
class Drop:
    """A figure that is well below the device's own past. now, past: in `unit`; past is the median of `profiles`."""

    title: str
    unit: str
    now: float
    past: float
    profiles: int


@dataclass(frozen=True)
class Health:
    """How a device stood when it was last measured. Speeds in tokens per second; None = not known."""

    created: str
    model: str
    decode_tokens_per_s: float | None
    expected_tokens_per_s: float | None
    expected_from: str  # "its own past", or what the caller reckoned with; "" without an expectation
    drops: tuple[Drop, ...]
    disturbed_by: tuple[str, ...]  # kinds of notes of the newest profile

    @property
    def share_of_expected(self) -> float | None:
        """Measured over expected."""
        if self.decode_tokens_per_s is None or not self.expected_tokens_per_s:
            return None
        return self.decode_tokens_per_s / self.expected_tokens_per_s

    @property
    def is_slow(self) -> bool:
        """Whether a figure is well below the past, or decode well below what was expected."""
        share = self.share_of_expected
        return bool(self.drops) or (share is not None and share < WELL_BELOW)


def judge_health(
    history: Sequence[Profile], expected_tokens_per_s: float | None = None, expected_from: str = ""
) -> Health | None:
    """Judge the newest of `history` (oldest first) by the others; None where there is none.

    Figures of a model are compared only with the same weights and KV cache. The expectation for decode is the median of
    the past, or `expected_tokens_per_s` where there is no past.
    """
    if not history:
        return None
    newest, past = history[-1], history[:-1]
    alike = [profile for profile in past if profile.device.isa == newest.device.isa]
    same_model = [profile for profile in alike if _describe_model(profile) == _describe_model(newest)]
    drops = []
    decode: Metric | None = None
    expected = None
    for metric in list_metrics(newest):
        if not metric.key.startswith(WATCHED):
            continue
        before = same_model if metric.key.startswith(("decode.", "prefill.")) else alike
        values = [m.value.median for profile in before for m in list_metrics(profile) if m.key == metric.key]
        median = statistics.median(values) if values else None
        if decode is None and metric.key.startswith("decode."):
            decode, expected = metric, median
        if median is not None and metric.value.median < WELL_BELOW * median:
            drops.append(Drop(metric.title, metric.unit, metric.value.median, median, len(values)))
    if expected is not None:
        expected_from = "its own past"
    return Health(
        created=newest.created,
        model="" if newest.model is None else newest.model.name,
        decode_tokens_per_s=None if decode is None else decode.value.median,
        expected_tokens_per_s=expected if expected is not None else expected_tokens_per_s,
        expected_from=expected_from if expected is not None or expected_tokens_per_s is not None else "",
        drops=tuple(drops),
        disturbed_by=tuple(dict.fromkeys(note.kind for note in newest.notes)),
    )


def _describe_model(profile: Profile) -> tuple[str, int, int, str] | None:
    model = profile.model
    return None if model is None else (model.name, model.weights_bytes, model.kv_bits, model.activations)
