"""What a measured profile means, in words and with the evidence: pure functions of the document.

Each finder says one thing or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edgeawq.profiling.schema import Profile
from edgeawq.profiling.verdict_parts import Verdict, is_emulated
from edgeawq.profiling.verdicts_machine import (
    judge_cold_start,
    judge_disturbance,
    judge_energy,
    judge_memory,
    judge_saturation,
    judge_tracing,
)
from edgeawq.profiling.verdicts_model import (
    judge_context,
    judge_decode,
    judge_head,
    judge_matrices,
    judge_prefill,
    judge_threads,
    judge_waiting,
)

__all__ = ["Verdict", "find_verdicts"]

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


def find_verdicts(profile: Profile) -> tuple[Verdict, ...]:
    """Everything worth saying, warnings first. An emulated device's figures allow no advice: only that is said."""
    found = [verdict for finder in FINDERS for verdict in finder(profile)]
    if is_emulated(profile):
        return tuple(verdict for verdict in found if verdict.kind == "emulated")
    order = ("warning", "hint", "good")
    return tuple(sorted(found, key=lambda verdict: order.index(verdict.severity)))
