"""What verdicts are made of: their form, and questions to a measured profile that several of them ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeawq.profiling.schema import Measurement, ModelProfile, OperationPoint, PhasePoint, Profile

Severity = Literal["good", "hint", "warning"]

CLEAR = 0.03  # a difference in speed that counts
LINEARS = ("qkv", "o", "gate_up", "down", "head")
DISTURBING = ("throttled", "low_voltage", "busy", "stolen", "swap", "emulated")


@dataclass(frozen=True)
class Verdict:
    """One finding. kind is stable for scripts; evidence: the figures behind it."""

    kind: str
    severity: Severity
    text: str
    evidence: tuple[str, ...] = ()


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


def is_emulated(profile: Profile) -> bool:
    """Whether the device's instructions were interpreted by another computer, whose speed the figures are then."""
    return any(note.kind == "emulated" for note in profile.notes)


def describe_board(profile: Profile) -> str:
    """The board or CPU, and what it is not."""
    device = profile.device
    kinds = [("emulated", is_emulated(profile)), ("a virtual machine", device.virtual_machine)]
    return ", ".join([device.model, *(name for name, applies in kinds if applies)])


def over(amount: float, whole: float) -> float:
    """amount / whole; 0 where the whole is nothing: a document may hold any numbers."""
    return amount / whole if whole > 0 else 0.0


def is_clearly_more(a: Measurement, b: Measurement) -> bool:
    """Whether a's median is larger by more than CLEAR and the middle halves do not overlap."""
    return a.median > (1 + CLEAR) * b.median and a.lower_quartile > b.upper_quartile
