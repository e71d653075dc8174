"""Measured profiles side by side: devices, releases or settings, with what became worse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from edgeawq.errors import UsageError
from edgeawq.profiling.schema import Measurement, Profile, Roof
from edgeawq.profiling.verdict_parts import DISTURBING

Change = Literal["better", "worse", "same", "unknown"]

DEFAULT_THRESHOLD = 0.05  # of the value; smaller differences are not worth a word


@dataclass(frozen=True)
class Metric:
    """One figure of a profile. unit: "B/s", "op/s", "s", "tokens/s", "tokens/J", "B"."""

    key: str  # stable for scripts: "decode.64", "memory.DRAM"
    title: str
    unit: str
    higher_is_better: bool
    value: Measurement


@dataclass(frozen=True)
class Row:
    """One metric in all profiles; None where a profile lacks it. changes: against the first profile."""

    key: str
    title: str
    unit: str
    higher_is_better: bool
    values: tuple[Measurement | None, ...]
    changes: tuple[Change, ...]

    def ratio(self, index: int) -> float | None:
        """The value over the first profile's; None where one is missing or zero."""
        base, value = self.values[0], self.values[index]
        return None if base is None or value is None or not base.median else value.median / base.median


@dataclass(frozen=True)
class Comparison:
    """All rows, and what differs in what was measured: (title, one text for each profile)."""

    names: tuple[str, ...]
    differences: tuple[tuple[str, tuple[str, ...]], ...]
    rows: tuple[Row, ...]
    is_same_device: bool
    threshold: float
    disturbed: tuple[str, ...]  # names of the profiles whose machine was disturbed while measuring

    @property
    def regressions(self) -> tuple[Row, ...]:
        """Rows in which a profile is worse than the first one; none between different devices."""
        return tuple(row for row in self.rows if "worse" in row.changes) if self.is_same_device else ()


def compare_profiles(
    profiles: Sequence[Profile], names: Sequence[str] = (), threshold: float = DEFAULT_THRESHOLD
) -> Comparison:
    """Put profiles side by side; the first one is what the others are held against.

    A change counts when the medians differ by more than `threshold` and the middle halves of the repetitions do not
    overlap. Raises UsageError for fewer than two profiles.
    """
    if len(profiles) < 2:
        raise UsageError("there is nothing to compare with one profile", remedy="give two files or more")
    found = [{metric.key: metric for metric in list_metrics(profile)} for profile in profiles]
    keys = list(dict.fromkeys(key for metrics in found for key in metrics))
    rows = []
    for key in keys:
        metric = next(metrics[key] for metrics in found if key in metrics)
        values = tuple(metrics[key].value if key in metrics else None for metrics in found)
        changes = tuple(judge_change(values[0], value, metric.higher_is_better, threshold) for value in values)
        rows.append(Row(key, metric.title, metric.unit, metric.higher_is_better, values, changes))
    devices = {(p.device.model, p.device.isa, p.device.cpus) for p in profiles}
    titles = tuple(names) or tuple(f"{p.device.name} {p.created[:16]}" for p in profiles)
    return Comparison(
        names=titles,
        differences=tuple(list_differences(profiles)),
        rows=tuple(rows),
        is_same_device=len(devices) == 1,
        threshold=threshold,
        disturbed=tuple(
            title
            for title, profile in zip(titles, profiles, strict=True)
            if any(note.kind in DISTURBING for note in profile.notes)
        ),
    )


def judge_change(
    base: Measurement | None, value: Measurement | None, higher_is_better: bool, threshold: float
) -> Change:
    """How `value` stands to `base`; "unknown" where one is missing."""
    if base is None or value is None:
        return "unknown"
    if abs(value.median - base.median) <= threshold * base.median:
        return "same"
    low, high = (base, value) if value.median > base.median else (value, base)
    if low.upper_quartile >= high.lower_quartile:
        return "same"
    return "better" if (value.median > base.median) == higher_is_better else "worse"


def list_metrics(profile: Profile) -> Iterable[Metric]:
    """Every figure that can be compared, the model's first."""
    model = profile.model
    if model is not None:
        for speed in model.decode_by_context:
            key = f"decode.{speed.context_tokens}"
            title = f"decode at {speed.context_tokens:,} tokens"
            yield Metric(key, title, "tokens/s", True, speed.tokens_per_second)
        for phase in model.phases:
            if phase.phase == "prefill":
                title = f"prefill at {phase.context_tokens:,} tokens"
                yield Metric(f"prefill.{phase.context_tokens}", title, "tokens/s", True, phase.tokens_per_second)
        for first in model.first_token:
            title = f"first token after {first.prompt_tokens:,}"
            yield Metric(f"first.{first.prompt_tokens}", title, "s", False, first.seconds)
        for start in model.cold_start:
            kind = "storage" if start.cache_bypassed else "cache"
            yield Metric(f"start.{kind}", f"start, weights in {kind}", "s", False, start.seconds)
        size = model.weights_bytes + model.memory_bytes
        yield Metric("memory_taken", "weights and buffers", "B", False, Measurement(size, size, size, size, size, 1))
    for point in profile.energy:
        if point.tokens_per_joule and point.stage in ("decode", "prefill"):
            rate = point.tokens_per_joule
            yield Metric(
                f"energy.{point.stage}.{point.source}",
                f"{point.stage}, {point.scope} energy",
                "tokens/J",
                True,
                Measurement(rate, rate, rate, rate, rate, 1),
            )
    for roof in profile.roofs:
        if roof.kind == "memory" and roof.bytes_per_second:
            read = _find_measurement(profile, roof, roof.bytes_per_second)
            yield Metric(f"memory.{roof.name}", f"read from {roof.name}", "B/s", True, read)
    for kind in dict.fromkeys(p.kind for p in profile.compute):
        rates = [p.ops_per_second for p in profile.compute if p.kind == kind]
        yield Metric(f"compute.{kind}", f"peak {kind}", "op/s", True, max(rates, key=lambda m: m.median))
    if profile.barrier:
        most = max(profile.barrier, key=lambda p: p.threads)
        yield Metric(f"barrier.{most.threads}", f"barrier of {most.threads} threads", "s", False, most.seconds)
    for storage in profile.storage:
        if storage.cache_bypassed:
            yield Metric("storage", "read from storage", "B/s", True, storage.bytes_per_second)


def _find_measurement(profile: Profile, roof: Roof, rate: float) -> Measurement:
    """What a memory's roof was taken from."""
    for point in profile.memory:
        if point.kind == "read" and point.threads == roof.threads and point.bytes_per_second.median == rate:
            return point.bytes_per_second
    return Measurement(rate, rate, rate, rate, rate, 1)


_FACTS: tuple[tuple[str, Callable[[Profile], str]], ...] = (
    ("device", lambda p: p.device.model),
    ("instruction set", lambda p: p.device.isa),
    ("CPUs", lambda p: str(p.device.cpus)),
    ("governor", lambda p: p.device.governor or "-"),
    ("system", lambda p: p.device.kernel),
    ("edgeawq", lambda p: p.tool_version),
    ("model", lambda p: "-" if p.model is None else p.model.name),
    ("release", lambda p: "-" if p.model is None else p.model.bundle),
    ("threads", lambda p: "-" if p.model is None else str(p.model.threads)),
    ("activations", lambda p: "-" if p.model is None else p.model.activations),
    ("KV cache", lambda p: "-" if p.model is None else f"{p.model.kv_bits} bits"),
    ("weights", lambda p: "-" if p.model is None else f"{p.model.weights_bytes / 1e6:.1f} MB"),
    ("disturbed by", lambda p: ", ".join(dict.fromkeys(note.kind for note in p.notes)) or "-"),
    ("measured", lambda p: p.created if p.complete else f"{p.created}, stopped early"),
)


def list_differences(profiles: Sequence[Profile]) -> Iterable[tuple[str, tuple[str, ...]]]:
    """What was measured, where that is not the same in all profiles."""
    for title, read in _FACTS:
        texts = tuple(read(profile) for profile in profiles)
        if len(set(texts)) > 1:
            yield title, texts
