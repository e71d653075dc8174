"""Verdicts on the machine: what disturbed it, its memory, its storage, its energy.

Thresholds are above what repetitions differ by on a quiet machine.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgeawq.profiling.schema import ColdStart, ModelProfile, Profile
from edgeawq.profiling.verdict_parts import DISTURBING, Verdict, count_threads, is_clearly_more, over

SATURATED = 0.85  # of the bandwidth, with fewer threads
TIGHT_MEMORY = 0.85
TRACING_LIMIT = 0.02
COLD_SHARE = 0.3
MAX_STAGES = 3  # named one by one


def judge_disturbance(profile: Profile) -> Iterable[Verdict]:
    """Throttling, a weak power supply, a busy machine: from the notes and the samples."""
    emulators = tuple(dict.fromkeys(note.text for note in profile.notes if note.kind == "emulated"))
    if emulators:
        text = "This device is emulated: the figures are of the computer that emulates it, not of a board"
        yield Verdict("emulated", "warning", text, emulators)
    found = list(dict.fromkeys(note.kind for note in profile.notes if note.kind in DISTURBING))
    if found and not emulators:
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


def judge_saturation(profile: Profile) -> Iterable[Verdict]:
    """One thread that gets nearly all of the memory's bandwidth."""
    reads = [point for point in profile.memory if point.kind == "read" and point.level == "DRAM"]
    if not reads:
        return
    # the largest working set: of smaller ones a cache may keep a part
    by_threads = {p.threads: p.bytes_per_second.median for p in sorted(reads, key=lambda p: p.bytes)}
    best, most = max(by_threads.values()), max(by_threads)
    enough = min(threads for threads, rate in by_threads.items() if rate >= SATURATED * best)
    if enough < most:
        reach = "reaches" if enough == 1 else "reach"
        share = 100 * over(by_threads[enough], best)
        yield Verdict(
            "memory-saturated",
            "hint",
            f"{enough} of {most} threads {reach} {share:.0f} % of the memory's bandwidth",
            tuple(f"{count_threads(threads)}: {rate / 1e9:.3g} GB/s" for threads, rate in sorted(by_threads.items())),
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
            f"Weights and buffers take {100 * over(needed, profile.device.memory_bytes):.0f} % of the memory:"
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
