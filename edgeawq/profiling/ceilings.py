"""What the measured roofs predict for the measured model, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgeawq.profiling.schema import Profile
from edgeawq.profiling.verdict_parts import find_phase

STEP_TOKENS = 64  # of a prompt that share one reading of the weights


@dataclass(frozen=True)
class Expectation:
    """One figure predicted and measured, both in seconds. ceiling_s: at the roof; expected_s: None where not reckoned.

    what: "decode" or "first_token"; tokens: in the context, or of the prompt.
    """

    what: str
    tokens: int
    ceiling_s: float
    expected_s: float | None
    measured_s: float

    @property
    def share_of_ceiling(self) -> float:
        """How near the measured speed comes to the roof, 1 at the roof."""
        return self.ceiling_s / self.measured_s if self.measured_s else 0.0


def list_expectations(profile: Profile) -> tuple[Expectation, ...]:
    """Decode at every context and the first token at every prompt length; empty without a model or a DRAM roof.

    The ceiling of decode: weights and cache read once at the DRAM roof. The expected step: the measured one at the
    shortest context and, beyond it, the cache read at the DRAM roof. The ceiling of a first token: the larger of the
    prompt's operations at the best int8 peak, and its weights read once for each STEP_TOKENS.
    """
    model, roof = profile.model, profile.roof("memory", "DRAM")
    if model is None or roof is None or not roof.bytes_per_second:
        return ()
    bandwidth = roof.bytes_per_second
    return tuple(e for e in (*_decode(profile, bandwidth), *_first_token(profile, bandwidth)) if e.measured_s > 0)


def _decode(profile: Profile, bandwidth: float) -> Iterable[Expectation]:
    model, phase = profile.model, find_phase(profile.model, "decode")
    if model is None or phase is None:
        return
    shortest = min(model.decode_by_context, key=lambda point: point.context_tokens, default=None)
    for point in model.decode_by_context:
        if point.tokens_per_second.median <= 0 or shortest is None or shortest.tokens_per_second.median <= 0:
            continue
        moved = phase.bytes_per_step + (point.context_tokens - phase.context_tokens) * model.kv_bytes_per_token
        added = (point.context_tokens - shortest.context_tokens) * model.kv_bytes_per_token / bandwidth
        yield Expectation(
            "decode",
            point.context_tokens,
            max(0, moved) / bandwidth,
            1 / shortest.tokens_per_second.median + added,
            1 / point.tokens_per_second.median,
        )


def _first_token(profile: Profile, bandwidth: float) -> Iterable[Expectation]:
    model, prefill, decode = profile.model, find_phase(profile.model, "prefill"), find_phase(profile.model, "decode")
    peaks = [
        r.ops_per_second
        for r in profile.roofs
        if r.kind == "compute" and r.name.startswith("int8") and r.ops_per_second
    ]
    if model is None or prefill is None or decode is None or not peaks:
        return
    per_token = prefill.operations_per_step / prefill.tokens_per_step
    for point in model.first_token:
        steps = -(-point.prompt_tokens // STEP_TOKENS)
        ceiling = max(point.prompt_tokens * per_token / max(peaks), steps * decode.bytes_per_step / bandwidth)
        yield Expectation("first_token", point.prompt_tokens, ceiling, None, point.seconds.median)
