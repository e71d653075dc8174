"""What a measured profile means, in words and with the evidence: pure functions of the document.

Each finder says one thing or nothing. Thresholds are above what repetitions differ by on a quiet machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from edgeawq.profiling.schema import (
    ColdStart,
    Measurement,
    ModelProfile,
    OperationPoint,
    PhasePoint,
    Profile,
    SpeedPoint,
)
from edgeawq.profiling.units import with_prefix

Severity = Literal["good", "hint", "warning"]

GOOD_SHARE = 0.7  # of the roof: what is left is not worth much work
LOW_SHARE = 0.5
CLEAR = 0.03  # a difference in speed that counts
HEAD_SHARE = 0.15  # of a token's bytes
WORTHWHILE = 0.05  # a predicted gain
WAITING_SHARE = 0.15
OVERHEAD_SHARE = 0.1
SATURATED = 0.85  # of the bandwidth, with fewer threads
CONTEXT_LOSS = 0.2
TIGHT_MEMORY = 0.85
TRACING_LIMIT = 0.02
COLD_SHARE = 0.3
DISTURBING = ("throttled", "low_voltage", "busy", "stolen", "swap")
MAX_STAGES = 3  # named one by one
LINEARS = ("qkv", "o", "gate_up", "down", "head")


@dataclass(frozen=True)
class Verdict:
    """One finding. kind is stable for scripts; evidence: the figures behind it."""

    kind: str
    severity: Severity
    text: str
    evidence: tuple[str, ...] = ()


def find_verdicts(profile: Profile) -> tuple[Verdict, ...]:
    """Everything worth saying, warnings first."""
    found = [verdict for finder in FINDERS for verdict in finder(profile)]
    order = ("warning", "hint", "good")
    return tuple(sorted(found, key=lambda verdict: order.index(verdict.severity)))


def judge_disturbance(profile: Profile) -> Iterable[Verdict]:
    """Throttling, a weak power supply, a busy machine: from the notes and the samples."""
    found = list(dict.fromkeys(note.kind for note in profile.notes if note.kind in DISTURBING))
    if found:
        yield Verdict(
            "disturbed",
            "warning",
            "The machine was disturbed: measure again when it is quiet before you act on what follows",
            (", ".join(kind.replace("_", " ") for kind in found),),
        )
    for kind, severity, title in (
        ("throttled", "warning", "Thermal throttling"),
        ("low_voltage", "warning", "The power supply is too weak"),
        ("busy", "warning", "Other programs took part of the CPU"),
        ("stolen", "warning", "The virtual machine's host took time away"),
        ("swap", "warning", "Memory was swapped"),
        ("clock", "hint", "The clock was not steady"),
        ("unsteady", "hint", "Repetitions differ widely"),
    ):
        notes = [note for note in profile.notes if note.kind == kind]
        if notes:
            first = min(notes, key=lambda note: note.seconds)
            stages = sorted({note.stage for note in notes if note.stage})
            where = f", in {', '.join(stages)}" if 0 < len(stages) <= MAX_STAGES else f", in {len(stages)} stages"
            where = where if stages else ""
            effect = "trust these figures less" if kind == "unsteady" else "what was measured then is too low"
            text = f"{title} from second {first.seconds:.0f}{where}: {effect}"
            texts = tuple(dict.fromkeys(note.text for note in notes))[:MAX_STAGES]
            evidence = (*texts, *_clock_fall(profile, first.seconds))
            yield Verdict(kind, severity, text, evidence)  # type: ignore[arg-type]


def judge_decode(profile: Profile) -> Iterable[Verdict]:
    """What bounds decode, and how far it is from the roof."""
    phase, roof = find_phase(profile.model, "decode"), profile.roof("memory", "DRAM")
    if phase is None or roof is None or not roof.bytes_per_second or not phase.bytes_per_step:
        return
    rate = _over(phase.bytes_per_step, phase.untraced_seconds_per_step.median)
    share = rate / roof.bytes_per_second
    evidence = (
        f"{phase.bytes_per_step / 1e6:.1f} MB a token at {rate / 1e9:.3g} GB/s",
        f"DRAM gives {roof.bytes_per_second / 1e9:.3g} GB/s with {count_threads(roof.threads)}",
    )
    bound = bound_of(phase)
    if bound == "compute":
        yield Verdict(
            "decode-compute-bound", "hint", "Decode is compute-bound: more or faster cores would help", evidence
        )
    elif share >= LOW_SHARE:
        yield Verdict(
            "decode-memory-bound",
            "good" if share >= GOOD_SHARE else "hint",
            f"Decode is memory-bound at {100 * share:.0f} % of the roof"
            + (": only fewer bytes a token make it faster" if GOOD_SHARE <= share <= 1 else ""),
            evidence,
        )
    else:
        yield Verdict(
            "decode-below-roof",
            "hint",
            f"Decode reaches {100 * share:.0f} % of the memory roof: neither memory nor arithmetic is the limit,"
            f" look at {describe_slowest(phase)}",
            evidence,
        )


def judge_matrices(profile: Profile) -> Iterable[Verdict]:
    """Matrices that are read faster than DRAM gives: part of a small model stays in a large cache."""
    phase, roof = find_phase(profile.model, "decode"), profile.roof("memory", "DRAM")
    linears = [] if phase is None else [op for op in phase.operations if op.kind in LINEARS]
    rate = _over(sum(op.bytes for op in linears), sum(op.seconds.median for op in linears))
    if roof is not None and roof.bytes_per_second and rate > (1 + CLEAR) * roof.bytes_per_second:
        yield Verdict(
            "matrices-in-cache",
            "good",
            f"Decode reads its matrices at {rate / 1e9:.3g} GB/s, more than DRAM gives: part of them stays in the"
            " caches (or the memory was busy when it was measured)",
            (f"DRAM gives {roof.bytes_per_second / 1e9:.3g} GB/s with {count_threads(roof.threads)}",),
        )


def judge_prefill(profile: Profile) -> Iterable[Verdict]:
    """How near a prompt comes to the peak rate."""
    phase = find_phase(profile.model, "prefill")
    if phase is None or bound_of(phase) != "compute":
        return
    linears = [op for op in phase.operations if op.kind in LINEARS and op.operations]
    roofs = {roof.name: roof.ops_per_second for roof in profile.roofs if roof.kind == "compute"}
    peak = max((roofs.get(op.compute_roof or "") or 0.0 for op in linears), default=0.0)
    seconds = sum(op.seconds.median for op in linears)
    if not peak or not seconds:
        return
    rate = sum(op.operations for op in linears) / seconds
    yield Verdict(
        "prefill-compute-bound",
        "good" if rate / peak >= GOOD_SHARE else "hint",
        f"A prompt is compute-bound; its matrices reach {100 * rate / peak:.0f} % of the measured peak",
        (f"{rate / 1e9:.3g} of {peak / 1e9:.3g} Gop/s", f"{phase.tokens_per_second.median:.0f} tokens/s"),
    )


def judge_threads(profile: Profile) -> Iterable[Verdict]:
    """Fewer threads that are faster, or as fast."""
    model = profile.model
    points = () if model is None else model.decode_by_threads
    if model is None or len(points) < 2:
        return
    best = max(points, key=lambda point: point.tokens_per_second.median)
    most = max(points, key=lambda point: point.threads)
    evidence = tuple(f"{count_threads(p.threads)}: {p.tokens_per_second.median:.3g} tokens/s" for p in points)
    if best.threads < most.threads and is_clearly_more(best.tokens_per_second, most.tokens_per_second):
        yield Verdict(
            "fewer-threads-faster",
            "warning" if model.threads == most.threads else "hint",
            f"{count_threads(best.threads)} {'beats' if best.threads == 1 else 'beat'} {most.threads}:"
            f" {best.tokens_per_second.median:.3g} against {most.tokens_per_second.median:.3g} tokens/s;"
            f" use --threads {best.threads}",
            evidence,
        )
        return
    enough = _fewest_as_fast(points, best)
    if enough is not None and enough.threads < most.threads:
        yield Verdict(
            "fewer-threads-enough",
            "hint",
            f"{count_threads(enough.threads)} decode as fast as {most.threads}: the others can stay free",
            evidence,
        )


def judge_head(profile: Profile) -> Iterable[Verdict]:
    """A head that is a large part of a token's bytes and wider than 4 bits."""
    model, phase = profile.model, find_phase(profile.model, "decode")
    if model is None or phase is None:
        return
    facts = {linear.kind: linear for linear in model.linears}
    head = facts.get("head") or facts.get("embedding")
    operation = find_operation(phase, "head")
    if head is None or operation is None or head.bits <= 4 or not operation.bytes or not phase.bytes_per_step:
        return
    share = operation.bytes / phase.bytes_per_step
    narrow = head.weights * (4 + (20 / head.group_size if head.group_size else 0)) / 8
    saved = operation.seconds.median * max(0.0, 1 - _over(narrow, head.bytes))
    gain = _over(saved, phase.seconds_per_step.median - saved)
    if share >= HEAD_SHARE and gain >= WORTHWHILE:
        yield Verdict(
            "narrow-head",
            "hint",
            f"The head is {100 * share:.0f} % of a token's bytes: quantize it to 4 bits"
            f" (+{100 * gain:.0f} % predicted; `edgeawq eval` says what it costs)",
            (
                f"head: {operation.bytes / 1e6:.1f} of {phase.bytes_per_step / 1e6:.1f} MB, {head.bits} bits",
                f"{1e3 * operation.seconds.median:.3g} of {1e3 * phase.seconds_per_step.median:.3g} ms",
            ),
        )


def judge_waiting(profile: Profile) -> Iterable[Verdict]:
    """Time at the barriers, and outside the native step."""
    phase = find_phase(profile.model, "decode")
    for kind, limit, text in (
        ("barrier", WAITING_SHARE, "waiting for other threads: uneven cores, other programs, or too many threads"),
        ("python", OVERHEAD_SHARE, "spent outside the native step"),
        ("sampling", OVERHEAD_SHARE, "spent choosing the token: a smaller top-k or greedy decoding costs less"),
    ):
        operation = None if phase is None else find_operation(phase, kind)
        if operation is not None and operation.share_of_step >= limit:
            yield Verdict(
                f"{kind}-time",
                "hint",
                f"{100 * operation.share_of_step:.0f} % of a token is {text}",
                (f"{with_prefix(operation.seconds.median, 's')} in {operation.calls:g} calls",),
            )


def judge_saturation(profile: Profile) -> Iterable[Verdict]:
    """One thread that gets nearly all of the memory's bandwidth."""
    reads = [point for point in profile.memory if point.kind == "read" and point.level == "DRAM"]
    if not reads:
        return
    by_threads: dict[int, float] = {}
    for point in reads:
        rate = point.bytes_per_second.median
        by_threads[point.threads] = max(rate, by_threads.get(point.threads, 0.0))
    best, most = max(by_threads.values()), max(by_threads)
    enough = min(threads for threads, rate in by_threads.items() if rate >= SATURATED * best)
    if enough < most:
        yield Verdict(
            "memory-saturated",
            "hint",
            f"{enough} of {most} threads reach {100 * _over(by_threads[enough], best):.0f} % of the memory's bandwidth",
            tuple(f"{count_threads(threads)}: {rate / 1e9:.3g} GB/s" for threads, rate in sorted(by_threads.items())),
        )


def judge_context(profile: Profile) -> Iterable[Verdict]:
    """Decode that slows down with a long context."""
    model = profile.model
    points = sorted(() if model is None else model.decode_by_context, key=lambda point: point.context_tokens)
    if model is None or len(points) < 2:
        return
    first, last = points[0], points[-1]
    loss = _over(first.tokens_per_second.median - last.tokens_per_second.median, first.tokens_per_second.median)
    if loss >= CONTEXT_LOSS:
        advice = "; --kv-bits 8 halves what attention reads" if model.kv_bits == 16 else ""
        yield Verdict(
            "long-context-slow",
            "hint",
            f"With {last.context_tokens:,} tokens in the context decode is {100 * loss:.0f} % slower{advice}",
            (
                f"{first.context_tokens:,} tokens: {first.tokens_per_second.median:.3g} tokens/s",
                f"{last.context_tokens:,} tokens: {last.tokens_per_second.median:.3g} tokens/s",
                f"a token adds {model.kv_bytes_per_token / 1e3:.1f} kB to the cache",
            ),
        )


def judge_cold_start(profile: Profile) -> Iterable[Verdict]:
    """Whether the storage, rather than memory or the program, makes the first answer late."""
    model = profile.model
    cold, warm = _cold_start(model, True), _cold_start(model, False)
    if cold is None or warm is None or model is None:
        return
    lost = cold.seconds.median - warm.seconds.median
    if lost >= COLD_SHARE * cold.seconds.median and is_clearly_more(cold.seconds, warm.seconds):
        rates = tuple(
            f"storage reads {point.bytes_per_second.median / 1e6:.0f} MB/s"
            for point in profile.storage[:1]
            if point.cache_bypassed
        )
        yield Verdict(
            "storage-bound-start",
            "hint",
            f"Storage, not DRAM, bounds the cold start: {cold.seconds.median:.1f} s, of which {lost:.1f} s are reading"
            f" the weights; from the page cache it takes {warm.seconds.median:.1f} s",
            (f"{cold.bytes_read / 1e6:.0f} MB read", *rates),
        )
    elif warm.import_seconds >= 0.5 * warm.seconds.median:
        yield Verdict(
            "import-bound-start",
            "hint",
            f"Importing Python packages takes {warm.import_seconds:.1f} of {warm.seconds.median:.1f} s of a start",
            (f"opening the bundle takes {warm.open_seconds:.2f} s",),
        )


def judge_memory(profile: Profile) -> Iterable[Verdict]:
    """A model that leaves the device little memory."""
    model = profile.model
    if model is None:
        return
    needed = model.weights_bytes + model.memory_bytes
    if needed >= TIGHT_MEMORY * profile.device.memory_bytes and needed:
        yield Verdict(
            "tight-memory",
            "warning",
            f"Weights and buffers take {100 * _over(needed, profile.device.memory_bytes):.0f} % of the memory:"
            " a shorter --context-length or --kv-bits 8 makes room",
            (f"{needed / 1e9:.2f} of {profile.device.memory_bytes / 1e9:.2f} GB",),
        )


def judge_energy(profile: Profile) -> Iterable[Verdict]:
    """What a token costs in energy, where the device tells."""
    for point in profile.energy:
        if point.stage == "decode" and point.tokens_per_joule:
            whole = "board" if point.scope == "board" else "CPU"
            yield Verdict(
                "energy",
                "good",
                f"Decode gives {point.tokens_per_joule:.3g} tokens per joule of the {whole}, at {point.watts:.3g} W",
                (f"{point.tokens} tokens in {point.seconds:.0f} s, sensor {point.source}",),
            )


def judge_tracing(profile: Profile) -> Iterable[Verdict]:
    """Tracing that costs more than it may."""
    for phase in () if profile.model is None else profile.model.phases:
        if phase.tracing_share > TRACING_LIMIT:
            yield Verdict(
                "tracing-cost",
                "hint",
                f"Tracing slowed {phase.phase} down by {100 * phase.tracing_share:.1f} %: trust shares more than times",
                (f"at {phase.context_tokens} tokens of context",),
            )


FINDERS: tuple[Callable[[Profile], Iterable[Verdict]], ...] = (
    judge_disturbance,
    judge_decode,
    judge_matrices,
    judge_prefill,
    judge_head,
    judge_threads,
    judge_saturation,
    judge_waiting,
    judge_context,
    judge_cold_start,
    judge_memory,
    judge_energy,
    judge_tracing,
)


def find_phase(model: ModelProfile | None, kind: str) -> PhasePoint | None:
    """The phase of that kind with the least in its context."""
    found = [] if model is None else [phase for phase in model.phases if phase.phase == kind]
    return min(found, key=lambda phase: phase.context_tokens) if found else None


def find_operation(phase: PhasePoint, kind: str) -> OperationPoint | None:
    """The operation of that kind in a step."""
    return next((operation for operation in phase.operations if operation.kind == kind), None)


def bound_of(phase: PhasePoint) -> str | None:
    """What bounds most of the time of the operations that have a roof; None where none has."""
    seconds = {"memory": 0.0, "compute": 0.0}
    for operation in phase.operations:
        if operation.bound_by is not None:
            seconds[operation.bound_by] += operation.seconds.median
    return max(seconds, key=lambda kind: seconds[kind]) if any(seconds.values()) else None


def describe_slowest(phase: PhasePoint) -> str:
    """The operation that loses the most time against its roof, in words."""

    def lost(operation: OperationPoint) -> float:
        share = operation.share_of_roof if operation.share_of_roof is not None else 0.0
        return operation.seconds.median * (1 - min(share, 1.0))

    worst = max(phase.operations, key=lost, default=None)
    if worst is None:
        return "the operations"
    if worst.share_of_roof is None:
        return f"{worst.kind} ({100 * worst.share_of_step:.0f} % of the time)"
    return (
        f"{worst.kind} ({100 * worst.share_of_step:.0f} % of the time, {100 * worst.share_of_roof:.0f} % of its roof)"
    )


def count_threads(threads: int) -> str:
    """ "1 thread", "2 threads"."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def _over(amount: float, whole: float) -> float:
    """amount / whole; 0 where the whole is nothing: a document may hold any numbers."""
    return amount / whole if whole > 0 else 0.0


def is_clearly_more(a: Measurement, b: Measurement) -> bool:
    """Whether a's median is larger by more than CLEAR and the middle halves do not overlap."""
    return a.median > (1 + CLEAR) * b.median and a.lower_quartile > b.upper_quartile


def _fewest_as_fast(points: tuple[SpeedPoint, ...], best: SpeedPoint) -> SpeedPoint | None:
    fast = [p for p in points if p.tokens_per_second.median >= (1 - CLEAR) * best.tokens_per_second.median]
    return min(fast, key=lambda point: point.threads) if fast else None


def _cold_start(model: ModelProfile | None, bypassed: bool) -> ColdStart | None:
    starts = () if model is None else model.cold_start
    return next((start for start in starts if start.cache_bypassed == bypassed), None)


def _clock_fall(profile: Profile, seconds: float) -> tuple[str, ...]:
    """The clock and temperature before and after a moment, where the system tells them."""
    before = [s for s in profile.samples if s.seconds < seconds and s.clock_hertz is not None]
    after = [s for s in profile.samples if s.seconds >= seconds and s.clock_hertz is not None]
    if not before or not after:
        return ()
    high = max(sample.clock_hertz or 0.0 for sample in before)
    low = min(after, key=lambda sample: sample.clock_hertz or 0.0)
    if (low.clock_hertz or 0.0) >= 0.98 * high:
        return ()
    heat = "" if low.temperature_celsius is None else f" at {low.temperature_celsius:.0f} °C"
    slow = (low.clock_hertz or 0.0) / 1e9
    return (f"clock {high / 1e9:.2f} GHz before, {slow:.2f} GHz{heat} in second {low.seconds:.0f}",)
