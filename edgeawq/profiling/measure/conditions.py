"""Watch the machine while it is measured, and note what a reader of the figures must know."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from edgeawq.profiling.measure import system
from edgeawq.profiling.schema import Note, NoteKind, Sample, Unavailable

BUSY_SHARE = 0.05  # of all CPUs, taken by other programs
STOLEN_SHARE = 0.02
HOT_CELSIUS = 78.0  # a Raspberry Pi lowers its clock from 80 on
CLOCK_FALL = 0.9  # of the highest clock that was measured
MAX_NOTES = 200
# Bits of a Raspberry Pi's firmware, now and since the start.
_PI_BITS: tuple[tuple[int, NoteKind, str], ...] = (
    (0, "low_voltage", "the supply voltage is too low"),
    (1, "throttled", "the clock is capped"),
    (2, "throttled", "the firmware throttles the CPU"),
    (3, "throttled", "the soft temperature limit is active"),
)
_PI_PAST_SHIFT = 16


def own_cpu_seconds() -> float:
    """CPU time of this process and of those it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Watch:
    """Samples and notes of one profile. `sample` is called between stages, when nothing is being timed."""

    def __init__(
        self,
        root: Path = system.ROOT,
        *,
        now: Callable[[], float] = time.monotonic,
        cpu_seconds: Callable[[], float] = own_cpu_seconds,
        ticks_per_s: int | None = None,
    ) -> None:
        self.samples: list[Sample] = []
        self.notes: list[Note] = []
        self._root, self._now, self._cpu_seconds = root, now, cpu_seconds
        self._ticks_per_s = ticks_per_s or os.sysconf("SC_CLK_TCK")
        self._start = now()
        self._noted: set[tuple[NoteKind, str, str]] = set()
        self._time = system.read_cpu_time(root)
        self._own = cpu_seconds()
        self._throttle_counts = system.read_throttle_counts(root)
        self._swapped = system.swap_used(root)
        self._best_hertz = 0.0
        self._note_start()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._now() - self._start

    def sample(self, stage: str) -> Sample:
        """Note the machine's state after `stage`, and what happened during it."""
        other, stolen = self._read_shares()
        sample = Sample(
            seconds=self.seconds,
            stage=stage,
            clock_hertz=system.read_clock(self._root),
            temperature_celsius=system.read_temperature(self._root),
            load_average=system.read_load(self._root),
            other_busy_share=other,
            stolen_share=stolen,
        )
        self.samples.append(sample)
        if other is not None and other > BUSY_SHARE:
            self.note("busy", stage, f"other programs took {other:.0%} of the CPUs")
        if stolen is not None and stolen > STOLEN_SHARE:
            self.note("stolen", stage, f"the virtual machine's host took {stolen:.0%} of the CPUs' time away")
        if sample.temperature_celsius is not None and sample.temperature_celsius >= HOT_CELSIUS:
            self.note("hot", stage, f"the CPU has {sample.temperature_celsius:.0f} °C")
        self._note_throttling(stage)
        swapped = system.swap_used(self._root)
        if swapped > self._swapped + (1 << 20):
            self.note("swap", stage, f"{(swapped - self._swapped) / 1e6:.0f} MB were swapped out")
        self._swapped = swapped
        return sample

    def note(self, kind: NoteKind, stage: str, text: str, *, key: str = "") -> None:
        """Keep a note; once for each kind, stage and key."""
        if (kind, stage, key) not in self._noted and len(self.notes) < MAX_NOTES:
            self._noted.add((kind, stage, key))
            self.notes.append(Note(kind, stage, self.seconds, text))

    def note_clock(self, hertz: float, stage: str) -> None:
        """Compare a clock that was measured under load with the highest one before."""
        if hertz < CLOCK_FALL * self._best_hertz:
            temperature = system.read_temperature(self._root)
            hot = temperature is not None and temperature >= HOT_CELSIUS
            where = f" at {temperature:.0f} °C" if temperature is not None else ""
            text = f"the clock under load fell from {self._best_hertz / 1e9:.2f} to {hertz / 1e9:.2f} GHz{where}"
            self.note("throttled" if hot else "clock", stage, text)
        self._best_hertz = max(self._best_hertz, hertz)

    def list_unavailable(self) -> list[Unavailable]:
        """What of the machine's state this system does not tell."""
        missing = []
        if system.read_temperature(self._root) is None:
            missing.append(Unavailable("temperature", "the system has no readable thermal sensor"))
        if system.read_clock(self._root) is None:
            missing.append(
                Unavailable("clock", "the system does not tell the clock; it is measured under load instead")
            )
        if self._time is None:
            missing.append(Unavailable("load", "/proc/stat cannot be read: other programs were not seen"))
        return missing

    def _read_shares(self) -> tuple[float | None, float | None]:
        """(other programs', stolen) shares of all CPUs since the last call."""
        time_now, own = system.read_cpu_time(self._root), self._cpu_seconds()
        before, own_before = self._time, self._own
        self._time, self._own = time_now, own
        if time_now is None or before is None or time_now.total <= before.total:
            return None, None
        total = time_now.total - before.total
        others = time_now.busy - before.busy - (own - own_before) * self._ticks_per_s
        return min(max(others / total, 0.0), 1.0), min(max((time_now.stolen - before.stolen) / total, 0.0), 1.0)

    def _note_start(self) -> None:
        emulator = system.find_emulator(self._root)
        if emulator is not None:
            self.note("emulated", "", f"its programs are interpreted by {emulator}")
        governor = system.read_text(self._root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        if governor == "powersave" and not system.list_entries(self._root, "sys/devices/system/cpu", "intel_pstate"):
            self.note("clock", "", "the clock's governor is powersave: the CPU stays at its lowest clock")
        cap = system.read_clock_cap(self._root)
        if cap is not None and cap[0] < CLOCK_FALL * cap[1]:
            text = f"the clock is limited to {cap[0] / 1e9:.2f} GHz of {cap[1] / 1e9:.2f} GHz"
            self.note("clock", "", text, key="cap")
        bits = system.read_pi_throttled(self._root) or 0
        for bit, kind, text in _PI_BITS:
            if bits >> (bit + _PI_PAST_SHIFT) & 1:
                self.note(kind, "", f"since the device was started: {text}", key=str(bit))

    def _note_throttling(self, stage: str) -> None:
        bits = system.read_pi_throttled(self._root) or 0
        for bit, kind, text in _PI_BITS:
            if bits >> bit & 1:
                self.note(kind, stage, f"{text} (firmware status {bits:#x})", key=str(bit))
        for name in system.read_cooling(self._root):
            self.note("throttled", stage, f"the cooling device {name} holds the clock down", key=name)
        counts = system.read_throttle_counts(self._root)
        risen = sum(max(0, count - self._throttle_counts.get(name, count)) for name, count in counts.items())
        if risen:
            self.note("throttled", stage, f"the CPU lowered its clock {risen} times for heat or current")
        self._throttle_counts = counts
