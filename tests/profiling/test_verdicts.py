"""Every verdict with a case in which it holds and one in which it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings

from edgeawq.profiling.schema import ColdStart, Note, Profile, SpeedPoint
from edgeawq.profiling.verdicts import Verdict, find_verdicts
from tests.profiling.example import make_profile, spread, with_model
from tests.profiling.profiles import profiles


def kinds(profile: Profile) -> set[str]:
    return {verdict.kind for verdict in find_verdicts(profile)}


def find(profile: Profile, kind: str) -> Verdict:
    return next(verdict for verdict in find_verdicts(profile) if verdict.kind == kind)


def noted(kind: str) -> Profile:
    return replace(make_profile(), notes=(Note(kind, "decode", 40.4, "the clock fell to 1.5 GHz"),))  # type: ignore[arg-type]


def test_no_advice_follows_from_the_figures_of_an_emulated_device() -> None:
    assert kinds(noted("emulated")) == {"emulated"}


def with_threads(*speeds: tuple[int, float], width: float = 0.02) -> Profile:
    points = tuple(SpeedPoint(64, n, spread(speed, width)) for n, speed in speeds)
    return with_model(make_profile(), decode_by_threads=points)


def with_head(bits: int) -> Profile:
    profile = make_profile()
    assert profile.model is not None
    linears = tuple(replace(x, bits=bits) if x.kind == "head" else x for x in profile.model.linears)
    return with_model(profile, linears=linears)


def with_share(kind: str, share: float) -> Profile:
    profile = make_profile()
    assert profile.model is not None
    phases = tuple(
        replace(
            phase,
            operations=tuple(replace(op, share_of_step=share) if op.kind == kind else op for op in phase.operations),
        )
        for phase in profile.model.phases
    )
    return with_model(profile, phases=phases)


def with_decode_bound(bound: str) -> Profile:
    profile = make_profile()
    assert profile.model is not None
    phases = tuple(
        replace(
            phase,
            operations=tuple(replace(op, bound_by=bound if op.bytes else None) for op in phase.operations),  # type: ignore[arg-type]
        )
        for phase in profile.model.phases
    )
    return with_model(profile, phases=phases)


def with_dram(rate: float) -> Profile:
    profile = make_profile()
    roofs = tuple(replace(r, bytes_per_second=rate) if r.name == "DRAM" else r for r in profile.roofs)
    return replace(profile, roofs=roofs)


def with_cold(cold: float, warm: float, imported: float = 0.2) -> Profile:
    starts = (
        ColdStart(True, spread(cold), imported, 0.1, 0.2, 88_000_000),
        ColdStart(False, spread(warm), imported, 0.1, 0.2, 0),
    )
    return with_model(make_profile(), cold_start=starts)


def with_tracing(share: float) -> Profile:
    profile = make_profile()
    assert profile.model is not None
    return with_model(profile, phases=tuple(replace(p, tracing_share=share) for p in profile.model.phases))


def with_dram_reads(one: float, many: float) -> Profile:
    profile = make_profile()
    memory = tuple(
        replace(p, bytes_per_second=spread(one if p.threads == 1 else many)) if p.level == "DRAM" else p
        for p in profile.memory
    )
    return replace(profile, memory=memory)


def with_speeds(*speeds: float) -> Profile:
    points = tuple(SpeedPoint(64 * 8**i, 4, spread(speed)) for i, speed in enumerate(speeds))
    return with_model(make_profile(), decode_by_context=points)


def with_memory(memory_bytes: int) -> Profile:
    profile = make_profile()
    return replace(profile, device=replace(profile.device, memory_bytes=memory_bytes))


def with_peak(ops_per_second: float) -> Profile:
    profile = make_profile()
    roofs = tuple(
        replace(roof, ops_per_second=ops_per_second) if roof.kind == "compute" else roof for roof in profile.roofs
    )
    return replace(profile, roofs=roofs)


CASES: list[tuple[str, Callable[[], Profile], Callable[[], Profile]]] = [
    ("disturbed", lambda: noted("busy"), lambda: noted("unsteady")),
    ("disturbed", lambda: noted("busy"), lambda: noted("emulated")),
    ("emulated", lambda: noted("emulated"), lambda: noted("busy")),
    ("throttled", lambda: noted("throttled"), make_profile),
    ("low_voltage", lambda: noted("low_voltage"), make_profile),
    ("busy", lambda: noted("busy"), lambda: noted("stolen")),
    ("stolen", lambda: noted("stolen"), make_profile),
    ("swap", lambda: noted("swap"), make_profile),
    ("clock", lambda: noted("clock"), make_profile),
    ("unsteady", lambda: noted("unsteady"), make_profile),
    ("decode-memory-bound", make_profile, lambda: make_profile(decode_scale=2.5)),
    ("decode-below-roof", lambda: make_profile(decode_scale=2.5), make_profile),
    ("matrices-in-cache", lambda: with_dram(6e9), make_profile),
    ("decode-compute-bound", lambda: with_decode_bound("compute"), make_profile),
    ("prefill-compute-bound", make_profile, lambda: with_decode_bound("memory")),
    ("prefill-compute-bound", make_profile, lambda: with_peak(100e9)),
    ("peak-too-low", lambda: with_peak(100e9), make_profile),
    ("narrow-head", lambda: with_head(8), lambda: with_head(4)),
    ("fewer-threads-faster", lambda: with_threads((1, 5), (2, 9.1), (4, 7.3)), lambda: with_threads((1, 5), (4, 9))),
    ("fewer-threads-enough", lambda: with_threads((2, 9), (4, 9.1)), lambda: with_threads((2, 7), (4, 9))),
    ("memory-saturated", lambda: with_dram_reads(11e9, 12e9), lambda: _all_needed()),
    ("barrier-time", lambda: with_share("barrier", 0.3), lambda: with_share("barrier", 0.05)),
    ("python-time", lambda: with_share("python", 0.2), lambda: with_share("python", 0.02)),
    ("sampling-time", lambda: with_share("sampling", 0.2), lambda: with_share("sampling", 0.02)),
    ("long-context-slow", lambda: with_speeds(100, 70), lambda: with_speeds(100, 95)),
    ("storage-bound-start", lambda: with_cold(4.2, 0.7), lambda: with_cold(0.75, 0.7)),
    ("import-bound-start", lambda: with_cold(0.75, 0.7, 0.5), lambda: with_cold(0.75, 0.7, 0.1)),
    ("tight-memory", lambda: with_memory(200 << 20), make_profile),
    ("energy", make_profile, lambda: replace(make_profile(), energy=())),
    ("tracing-cost", lambda: with_tracing(0.05), make_profile),
]  # fmt: skip


def _all_needed() -> Profile:
    """A memory whose bandwidth grows with every thread."""
    profile = make_profile()
    memory = tuple(
        replace(p, bytes_per_second=spread(3e9 * p.threads)) if p.level == "DRAM" else p for p in profile.memory
    )
    return replace(profile, memory=memory)


@pytest.mark.parametrize(("kind", "holds", "does_not"), CASES, ids=[case[0] for case in CASES])
def test_a_verdict_holds_here_and_not_there(
    kind: str, holds: Callable[[], Profile], does_not: Callable[[], Profile]
) -> None:
    verdict = find(holds(), kind)
    assert verdict.evidence
    assert kind not in kinds(does_not())


def test_the_verdicts_say_their_figures() -> None:
    assert "from second 40, in decode: what was measured then is too low" in find(noted("throttled"), "throttled").text
    assert "2 threads beat 4: 9.1 against 7.3" in find(with_threads((2, 9.1), (4, 7.3)), "fewer-threads-faster").text
    assert "78 % of the roof" in find(make_profile(), "decode-memory-bound").text
    head = find(make_profile(), "narrow-head").text
    assert "33 % of a token's bytes" in head and "+18 % predicted" in head
    assert "Storage, not DRAM" in find(with_cold(4.2, 0.7), "storage-bound-start").text
    assert "3.5 s are reading" in find(with_cold(4.2, 0.7), "storage-bound-start").text


def test_the_clocks_fall_is_evidence_for_throttling() -> None:
    profile = noted("throttled")
    samples = tuple(
        replace(s, clock_hertz=1.5e9, temperature_celsius=85.0) if s.seconds >= 40 else s for s in profile.samples
    )
    evidence = " ".join(find(replace(profile, samples=samples), "throttled").evidence)
    assert "2.40 GHz before, 1.50 GHz at 85 °C" in evidence
    assert "GHz before" not in " ".join(find(profile, "throttled").evidence)


def test_noise_is_no_verdict() -> None:
    assert "fewer-threads-faster" not in kinds(with_threads((2, 9.1), (4, 8.7), width=0.2))
    assert "fewer-threads-faster" not in kinds(with_threads((2, 9.1), (4, 9.0)))


def test_a_head_is_predicted_by_its_bytes() -> None:
    """+18 %: the head's 3.0 of 9.66 ms become 4.25 / 8.375 bits of it (scales and zeros counted)."""
    head, step = 3.0, 9.66
    saved = head * (1 - (4 + 20 / 64) / (8 + 24 / 64))
    assert f"+{100 * (step / (step - saved) - 1):.0f} %" in find(make_profile(), "narrow-head").text


def test_warnings_come_first() -> None:
    order = [verdict.severity for verdict in find_verdicts(noted("throttled"))]
    assert order == sorted(order, key=("warning", "hint", "good").index)
    assert order[0] == "warning"


def test_without_a_model_only_the_machine_is_judged() -> None:
    assert kinds(make_profile(model=False)) <= {"memory-saturated", "energy"}


@settings(max_examples=40, deadline=None)
@given(profiles())
def test_no_document_is_too_strange(profile: Profile) -> None:
    for verdict in find_verdicts(profile):
        assert verdict.text and verdict.severity in ("good", "hint", "warning")
