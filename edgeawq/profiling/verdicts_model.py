"""Verdicts on the model: what bounds decode and a prompt, and what would make them faster.

Thresholds are above what repetitions differ by on a quiet machine.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgeawq.profiling.schema import Profile, SpeedPoint
from edgeawq.profiling.units import with_prefix
from edgeawq.profiling.verdict_parts import (
    CLEAR,
    LINEARS,
    Verdict,
    bound_of,
    count_threads,
    describe_slowest,
    find_operation,
    find_phase,
    is_clearly_more,
    over,
)

ABOVE_PEAK = 1.05  # more than two measurements of the same differ by
GOOD_SHARE = 0.7  # of the roof: what is left is not worth much work
LOW_SHARE = 0.5
HEAD_SHARE = 0.15  # of a token's bytes
WORTHWHILE = 0.05  # a predicted gain
WAITING_SHARE = 0.15
OVERHEAD_SHARE = 0.1
CONTEXT_LOSS = 0.2


def judge_decode(profile: Profile) -> Iterable[Verdict]:
    """What bounds decode, and how far it is from the roof."""
    phase, roof = find_phase(profile.model, "decode"), profile.roof("memory", "DRAM")
    if phase is None or roof is None or not roof.bytes_per_second or not phase.bytes_per_step:
        return
    rate = over(phase.bytes_per_step, phase.untraced_seconds_per_step.median)
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
    rate = over(sum(op.bytes for op in linears), sum(op.seconds.median for op in linears))
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
    if rate > ABOVE_PEAK * peak:
        yield Verdict(
            "peak-too-low",
            "hint",
            f"A prompt's matrices ran at {100 * rate / peak:.0f} % of the measured peak, which was too low:"
            " measure again while nothing else runs",
            (f"{rate / 1e9:.3g} of {peak / 1e9:.3g} Gop/s", f"{phase.tokens_per_second.median:.0f} tokens/s"),
        )
        return
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
        decode = "decodes" if enough.threads == 1 else "decode"
        yield Verdict(
            "fewer-threads-enough",
            "hint",
            f"{count_threads(enough.threads)} {decode} as fast as {most.threads}: the others can stay free",
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
    saved = operation.seconds.median * max(0.0, 1 - over(narrow, head.bytes))
    gain = over(saved, phase.seconds_per_step.median - saved)
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


def judge_context(profile: Profile) -> Iterable[Verdict]:
    """Decode that slows down with a long context."""
    model = profile.model
    points = sorted(() if model is None else model.decode_by_context, key=lambda point: point.context_tokens)
    if model is None or len(points) < 2:
        return
    first, last = points[0], points[-1]
    loss = over(first.tokens_per_second.median - last.tokens_per_second.median, first.tokens_per_second.median)
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


def _fewest_as_fast(points: tuple[SpeedPoint, ...], best: SpeedPoint) -> SpeedPoint | None:
    fast = [p for p in points if p.tokens_per_second.median >= (1 - CLEAR) * best.tokens_per_second.median]
    return min(fast, key=lambda point: point.threads) if fast else None
