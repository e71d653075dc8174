"""One bundle on this device: phases, speeds, first token, cold start, energy."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from edgeawq.profiling.measure.cold_start import run_cold_start
from edgeawq.profiling.measure.conditions import Watch
from edgeawq.profiling.measure.costs import list_linears
from edgeawq.profiling.measure.energy import Sensor, measure_energy
from edgeawq.profiling.measure.generation import decoder_of, fill_cache, plain_tokens, time_tokens
from edgeawq.profiling.measure.phases import Surroundings, measure_decode, measure_prefill
from edgeawq.profiling.measure.plan import Budget, Stage
from edgeawq.profiling.measure.statistics import invert, summarize
from edgeawq.profiling.measure.storage import drop_cached
from edgeawq.profiling.schema import (
    CacheFacts,
    ColdStart,
    EnergyPoint,
    FirstTokenPoint,
    Measurement,
    ModelProfile,
    PhasePoint,
    Roof,
    SpeedPoint,
    Unavailable,
)
from edgeawq.runtime.cpu import available_cpus
from edgeawq.runtime.decoder import DEFAULT_CONTEXT_LENGTH, MAX_THREADS, Decoder
from edgeawq.runtime.engine import Engine, open_engine
from edgeawq.runtime.sampler import make_sampler
from edgeawq.runtime.thread_choice import list_candidates, recall_threads
from packager.manifest import Manifest
from packager.manifest_reader import read_manifest

IDLE_S = 2.0
DECODE_POSITION = 256  # where decode is looked at in detail, if the context has room
ENERGY_TOKENS = 64
LEAST_TOKENS, MOST_TOKENS = 8, 64
NO_TRACE = "the bundle's kernels are older than tracing: pack and push it again"


class ModelMeasurer:
    """Measures a bundle stage by stage and keeps what it has found."""

    def __init__(
        self,
        bundle: Path,
        name: str,
        *,
        n_threads: int,
        budget: Budget,
        caches: tuple[CacheFacts, ...],
        roofs: Callable[[], Sequence[Roof]],
        watch: Watch,
        sensors: Sequence[Sensor],
        unavailable: list[Unavailable],
    ) -> None:
        """Read the bundle's manifest; the model is opened by the first stage that needs it."""
        self._bundle, self._name, self._budget = bundle, name, budget
        self._caches, self._roofs, self._watch = caches, roofs, watch
        self._sensors, self._unavailable = sensors, unavailable
        self._n_threads = n_threads or recall_threads(bundle) or min(available_cpus(), MAX_THREADS)
        self._manifest: Manifest = read_manifest(bundle)
        self._open: Engine | None = None
        self._facts: ModelProfile | None = None
        self._phases: list[PhasePoint] = []
        self._by_context: list[SpeedPoint] = []
        self._by_threads: list[SpeedPoint] = []
        self._first_token: list[FirstTokenPoint] = []
        self._cold_start: list[ColdStart] = []
        self.energy: list[EnergyPoint] = []

    def stages(self) -> list[Stage]:
        """What to run, in this order."""
        budget = self._budget
        length = min(self._manifest.model.max_position_embeddings, DEFAULT_CONTEXT_LENGTH)
        room = length - 2 * MOST_TOKENS
        contexts = [count for count in budget.contexts if count <= room]
        prompts = [count for count in budget.prompts if count < length]
        cpus = sorted(list_candidates(len(os.sched_getaffinity(0))))
        return [
            Stage("decode", 2 * budget.phase_s, self._measure_decode),
            Stage("prefill", 2 * budget.phase_s, self._measure_prefill),
            *(Stage(f"context of {n} tokens", 1.5 * budget.speed_s, self._at_context(n)) for n in contexts),
            *(Stage(f"prompt of {n} tokens", n / 200, self._at_prompt(n)) for n in prompts),
            *(
                Stage(f"decode with {n} thread{'s' if n > 1 else ''}", 1.5 * budget.speed_s, self._with_threads(n))
                for n in cpus
            ),
            *([Stage("energy", 8.0, self._measure_energy)] if self._sensors else []),
            Stage("cold start", 4.0 * budget.cold_starts, self._measure_cold_starts),
        ]

    def result(self) -> ModelProfile | None:
        """What has been found so far; None where the model was not opened yet."""
        if self._facts is None:
            return None
        return replace(
            self._facts,
            phases=tuple(self._phases),
            decode_by_context=tuple(self._by_context),
            decode_by_threads=tuple(self._by_threads),
            first_token=tuple(self._first_token),
            cold_start=tuple(self._cold_start),
        )

    def close(self) -> None:
        """Stop the decoder's threads and let go of the mapped weights."""
        if self._open is not None:
            self._open.decoder.close()
            self._open = None
            gc.collect()

    @property
    def _engine(self) -> Engine:
        """The model, opened when it is first asked for; BundleError or KernelError when it does not run here."""
        if self._open is None:
            self._open = open_engine(self._bundle, n_threads=self._n_threads)
            self._facts = self._describe(decoder_of(self._open))
        return self._open

    def _describe(self, decoder: Decoder) -> ModelProfile:
        weights = self._manifest.file("weights")
        assert weights is not None
        return ModelProfile(
            name=self._manifest.model.name,
            bundle=self._name or self._bundle.name,
            profile=self._manifest.device.profile,
            isa=decoder.isa,
            activations=decoder.activations,
            kv_bits=decoder.kv_bits,
            threads=decoder.n_threads,
            context_length=decoder.context_length,
            weights_bytes=weights.size,
            memory_bytes=decoder.memory_bytes,
            kv_bytes_per_token=decoder.kv_cache_bytes_per_token,
            linears=list_linears(self._manifest),
            phases=(),
            decode_by_context=(),
            decode_by_threads=(),
            first_token=(),
            cold_start=(),
        )

    def _around(self) -> Surroundings:
        return Surroundings(self._roofs(), self._caches)

    def _measure_decode(self) -> None:
        decoder = decoder_of(self._engine)
        position = min(DECODE_POSITION, max(0, decoder.context_length - 2 * MOST_TOKENS))
        self._keep(measure_decode(self._engine, position, self._budget.phase_s, self._around()))

    def _measure_prefill(self) -> None:
        self._keep(measure_prefill(self._engine, self._budget.phase_s, self._around()))

    def _keep(self, phase: PhasePoint | None) -> None:
        if phase is None:
            self._unavailable.append(Unavailable("operations", NO_TRACE))
        else:
            self._phases.append(phase)

    def _at_context(self, count: int) -> Callable[[], None]:
        def measure() -> None:
            self._by_context.append(measure_speed(self._engine, count, self._budget.speed_s))

        return measure

    def _at_prompt(self, count: int) -> Callable[[], None]:
        def measure() -> None:
            expected = self._expect_prompt(count)
            if expected > self._budget.first_token_s:
                text = f"a prompt of {count} tokens would take about {expected:.0f} s; measured up to a shorter one"
                self._unavailable.append(Unavailable("first_token", text))
                return
            seconds = _repeat_prompt(self._engine, count, self._budget.first_token_s)
            self._first_token.append(FirstTokenPoint(count, seconds))

        return measure

    def _expect_prompt(self, count: int) -> float:
        if not self._first_token:
            return 0.0
        last = self._first_token[-1]
        return last.seconds.median * count / last.prompt_tokens

    def _with_threads(self, n_threads: int) -> Callable[[], None]:
        def measure() -> None:
            if n_threads == decoder_of(self._engine).n_threads:
                self._by_threads.append(measure_speed(self._engine, LEAST_TOKENS, self._budget.speed_s))
                return
            with open_engine(self._bundle, n_threads=n_threads, context_length=4 * MOST_TOKENS) as engine:
                self._by_threads.append(measure_speed(engine, LEAST_TOKENS, self._budget.speed_s))

        return measure

    def _measure_energy(self) -> None:
        for sensor in self._sensors:
            idle = measure_energy(sensor, "idle", _sleep)
            decode = measure_energy(sensor, "decode", self._decode_for_energy)
            prefill = measure_energy(sensor, "prefill", self._prefill_for_energy)
            points = [point for point in (idle, decode, prefill) if point is not None]
            self.energy.extend(points)
            if not points:
                self._unavailable.append(Unavailable("energy", f"the sensor {sensor.name} stopped answering"))

    def _decode_for_energy(self) -> int:
        fill_cache(decoder_of(self._engine), min(ENERGY_TOKENS, decoder_of(self._engine).context_length // 4))
        return len(time_tokens(self._engine, ENERGY_TOKENS))

    def _prefill_for_energy(self) -> int:
        decoder = decoder_of(self._engine)
        prompt = plain_tokens(decoder.config.vocab_size, min(4 * ENERGY_TOKENS, decoder.context_length))
        decoder.rewind(0)
        decoder.forward(prompt)
        decoder.rewind(0)
        return len(prompt)

    def _measure_cold_starts(self) -> None:
        """With the weights in the page cache, and without: our own mapping would keep them there, so it goes first."""
        self.close()
        weights = self._manifest.file("weights")
        assert weights is not None
        for cold in (False, True):
            point = _repeat_start(
                self._bundle, self._bundle / weights.path, self._n_threads, self._budget.cold_starts, cold=cold
            )
            if point.cache_bypassed == cold:
                self._cold_start.append(point)
            else:  # it was measured once more with them there
                text = "the weights stayed in the page cache: the start was not a cold one"
                self._watch.note("cache", "cold start", text)


def measure_speed(engine: Engine, context_tokens: int, budget_s: float) -> SpeedPoint:
    """Tokens per second of the runtime's own loop after `context_tokens` tokens."""
    decoder = decoder_of(engine)
    fill_cache(decoder, context_tokens)
    start = time.perf_counter()
    seconds: list[float] = []
    while len(seconds) < MOST_TOKENS and (len(seconds) < LEAST_TOKENS or time.perf_counter() - start < budget_s):
        seconds += [token.seconds for token in time_tokens(engine, LEAST_TOKENS)]
    return SpeedPoint(context_tokens, decoder.n_threads, invert(summarize(seconds), 1.0))


def _repeat_prompt(engine: Engine, count: int, budget_s: float) -> Measurement:
    """Seconds from a prompt to its first token, sampling included."""
    decoder, sampler = decoder_of(engine), make_sampler(engine.sampling)
    prompt = plain_tokens(decoder.config.vocab_size, count)
    values: list[float] = []
    begun = time.perf_counter()
    while len(values) < 3 or (len(values) < 9 and time.perf_counter() - begun < budget_s / 4):
        decoder.rewind(0)
        start = time.perf_counter()
        sampler(decoder.forward(prompt), prompt)
        values.append(time.perf_counter() - start)
        if time.perf_counter() - begun > budget_s:
            break
    decoder.rewind(0)
    return summarize(values)


def _repeat_start(bundle: Path, weights: Path, n_threads: int, count: int, *, cold: bool) -> ColdStart:
    runs = []
    bypassed = cold
    if not cold:
        run_cold_start(bundle, n_threads)  # brings everything into the page cache
    for _ in range(count):
        if cold:
            descriptor = os.open(weights, os.O_RDONLY | os.O_CLOEXEC)
            try:
                bypassed = drop_cached(descriptor) and bypassed
            finally:
                os.close(descriptor)
        runs.append(run_cold_start(bundle, n_threads))
    runs.sort(key=lambda run: run[0])
    parts = runs[len(runs) // 2][1]
    return ColdStart(
        cache_bypassed=bypassed,
        seconds=summarize([seconds for seconds, _ in runs]),
        import_seconds=parts["import"],
        open_seconds=parts["open"],
        first_token_seconds=parts["first_token"],
        bytes_read=weights.stat().st_size,
    )


def _sleep() -> int:
    time.sleep(IDLE_S)
    return 0
