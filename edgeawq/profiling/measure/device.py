"""Measure a device, and a model on it: the stages of a profile, put together."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import edgeawq
from edgeawq.profiling.measure import system
from edgeawq.profiling.measure.bandwidth import Arena, choose_arena, measure_bandwidth
from edgeawq.profiling.measure.compute import measure_barrier, measure_clock, measure_compute
from edgeawq.profiling.measure.conditions import Watch
from edgeawq.profiling.measure.energy import explain_missing, find_sensors
from edgeawq.profiling.measure.model import ModelMeasurer
from edgeawq.profiling.measure.plan import BUDGETS, Amount, Progress, Stage, run_stages
from edgeawq.profiling.measure.probe import Probe
from edgeawq.profiling.measure.roofs import find_roofs
from edgeawq.profiling.measure.storage import measure_mapped, measure_storage, measure_zeroed
from edgeawq.profiling.schema import (
    FORMAT_VERSION,
    BandwidthPoint,
    BarrierPoint,
    CacheFacts,
    ClockPoint,
    ComputePoint,
    PagePoint,
    Profile,
    Roof,
    StoragePoint,
    Unavailable,
)
from edgeawq.runtime.native import NativeObject, load_object
from edgeawq.runtime.thread_choice import list_candidates

UNSTEADY_SPREAD = 0.15


@dataclass(frozen=True)
class ProfileOptions:
    """What to measure. probe: the object of `cpu_kernels.build.build_probe` for this CPU, None for none."""

    name: str = "host"
    isa: str = ""
    probe: bytes | None = None
    probe_missing: str = ""  # why there is none
    bundle: Path | None = None
    bundle_name: str = ""
    n_threads: int = 0
    amount: Amount = "usual"


@dataclass
class _Found:
    """What has been measured so far."""

    clock: list[ClockPoint] = field(default_factory=list)
    memory: list[BandwidthPoint] = field(default_factory=list)
    compute: list[ComputePoint] = field(default_factory=list)
    barrier: list[BarrierPoint] = field(default_factory=list)
    pages: list[PagePoint] = field(default_factory=list)
    storage: list[StoragePoint] = field(default_factory=list)
    unavailable: list[Unavailable] = field(default_factory=list)
    roofs: tuple[Roof, ...] = ()


def measure_device(
    options: ProfileOptions,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    root: Path = system.ROOT,
) -> Profile:
    """Measure this machine. Ctrl-C ends it early: the document then says that it is not complete.

    Raises BundleError or KernelError for a bundle that does not run here.
    """
    watch = Watch(root)
    facts = system.describe_device(options.name, options.isa, root)
    found = _Found(unavailable=watch.list_unavailable())
    if not find_sensors(root):
        found.unavailable.append(explain_missing(root))
    stages: list[Stage] = []
    cpus = sorted(list_candidates(facts.cpus))
    if options.probe is None:
        found.unavailable.append(Unavailable("probes", options.probe_missing or "no probe object was given"))
    else:
        native = load_object(options.probe)
        stages += _list_probe_stages(options, native, cpus, facts.caches, found, watch, root)
    model = None
    if options.bundle is not None:
        model = ModelMeasurer(
            options.bundle,
            options.bundle_name,
            n_threads=options.n_threads,
            budget=BUDGETS[options.amount],
            caches=facts.caches,
            roofs=lambda: found.roofs,
            watch=watch,
            sensors=find_sensors(root),
            unavailable=found.unavailable,
        )
        stages.append(Stage("storage", 8.0, lambda: _measure_storage(options.bundle, found, watch)))
        stages += model.stages()
    if options.probe is not None:
        stages.append(Stage("clock again", 0.5, lambda: _measure_clock_again(native, cpus, found, watch)))
    try:
        complete = run_stages(stages, on_progress, lambda stage: _end_stage(stage, watch))
    finally:
        if model is not None:
            model.close()
    _note_spread(found, watch)
    return Profile(
        format="edgeawq-profile",
        format_version=FORMAT_VERSION,
        tool_version=edgeawq.__version__,
        created=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=watch.seconds,
        complete=complete,
        device=facts,
        samples=tuple(watch.samples),
        notes=tuple(watch.notes),
        unavailable=tuple(dict.fromkeys(found.unavailable)),
        clock=tuple(found.clock),
        memory=tuple(found.memory),
        compute=tuple(found.compute),
        barrier=tuple(found.barrier),
        pages=tuple(found.pages),
        storage=tuple(found.storage),
        energy=tuple(model.energy) if model else (),
        roofs=found.roofs,
        model=model.result() if model else None,
    )


def _list_probe_stages(
    options: ProfileOptions,
    native: NativeObject,
    cpus: list[int],
    caches: tuple[CacheFacts, ...],
    found: _Found,
    watch: Watch,
    root: Path,
) -> list[Stage]:
    arena_bytes = choose_arena(caches, system.available_memory(root))

    def measure_cores(n_threads: int) -> None:
        with Probe(native, n_threads) as probe:
            clock = measure_clock(probe)
            found.clock.append(clock)
            watch.note_clock(clock.hertz.maximum, f"compute, {_threads(n_threads)}")
            for point in measure_compute(probe, options.isa, clock.hertz.maximum):
                (found.compute if isinstance(point, ComputePoint) else found.unavailable).append(point)  # type: ignore[arg-type]
            found.barrier.append(measure_barrier(probe))

    def measure_memory(n_threads: int) -> None:
        with Probe(native, n_threads) as probe, Arena(arena_bytes) as arena:
            found.memory.extend(measure_bandwidth(probe, arena, caches))
        found.roofs = find_roofs(found.memory, found.compute, caches)

    def measure_pages() -> None:
        with Probe(native, 1) as probe:
            found.pages.append(measure_zeroed(probe, system.available_memory(root)))
            if options.bundle is not None:
                found.pages.append(measure_mapped(probe, _weights_of(options.bundle)))

    stages = []
    for n_threads in cpus:
        stages.append(Stage(f"compute, {_threads(n_threads)}", 1.2, _bind(measure_cores, n_threads)))
        stages.append(Stage(f"memory, {_threads(n_threads)}", 4.0, _bind(measure_memory, n_threads)))
    return [*stages, Stage("pages", 1.0, measure_pages)]


def _bind(function: Callable[[int], None], value: int) -> Callable[[], None]:
    return lambda: function(value)


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _weights_of(bundle: Path) -> Path:
    from packager.manifest_reader import read_manifest

    entry = read_manifest(bundle).file("weights")
    assert entry is not None
    return bundle / entry.path


def _measure_storage(bundle: Path | None, found: _Found, watch: Watch) -> None:
    assert bundle is not None
    try:
        point = measure_storage(_weights_of(bundle))
    except OSError as error:
        found.unavailable.append(Unavailable("storage", f"the weights cannot be read: {error.strerror}"))
        return
    found.storage.append(point)
    if not point.cache_bypassed:
        text = "the page cache could not be emptied (the file is in use, or lies in memory): not the storage's speed"
        watch.note("cache", "storage", text)


def _measure_clock_again(native: NativeObject, cpus: list[int], found: _Found, watch: Watch) -> None:
    """At the end, when the device is warm: a clock that has fallen is noted."""
    with Probe(native, cpus[-1]) as probe:
        clock = measure_clock(probe)
    watch.note_clock(clock.hertz.maximum, "clock again")


def _end_stage(stage: str, watch: Watch) -> None:
    watch.sample(stage)


def _note_spread(found: _Found, watch: Watch) -> None:
    """Which figures are unsteady, in one note for each kind."""
    spreads = {
        "memory": [point.bytes_per_second.spread for point in found.memory],
        "compute": [point.ops_per_second.spread for point in found.compute],
        "barrier": [point.seconds.spread for point in found.barrier],
        "clock": [point.hertz.spread for point in found.clock],
    }
    for kind, values in spreads.items():
        wide = sum(value > UNSTEADY_SPREAD for value in values)
        if wide:
            text = f"{wide} of {len(values)} {kind} figures vary by more than {UNSTEADY_SPREAD:.0%} between repetitions"
            watch.note("unsteady", kind, f"{text}; the widest by {max(values):.0%}")
