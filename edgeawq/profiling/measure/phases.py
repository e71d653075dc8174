"""Prefill and decode, operation by operation, with and without tracing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cpu_kernels import abi
from cpu_kernels.estimates import Estimates
from edgeawq.profiling.measure.costs import StepShape, estimate_step, find_bits
from edgeawq.profiling.measure.generation import TokenTime, decoder_of, fill_cache, plain_tokens, time_tokens
from edgeawq.profiling.measure.roofs import choose_compute_roof, choose_memory_roof, place_operation
from edgeawq.profiling.measure.statistics import invert, summarize
from edgeawq.profiling.measure.trace import TRACED, Marks, Tracer
from edgeawq.profiling.schema import (
    CacheFacts,
    Measurement,
    OperationKind,
    OperationPoint,
    PhaseKind,
    PhasePoint,
    Roof,
)
from edgeawq.runtime.decoder import Decoder
from edgeawq.runtime.engine import Engine

BLOCK_TOKENS = 8  # with tracing, then as many without: what disturbs the machine disturbs both
LEAST_BLOCKS, MOST_BLOCKS = 2, 16
PREFILL_STEPS = 4


@dataclass(frozen=True)
class Surroundings:
    """What an operation is compared with."""

    roofs: Sequence[Roof]
    caches: Sequence[CacheFacts]


@dataclass(frozen=True)
class _Step:
    """One traced step: seconds from its beginning to the next one's, and of each kind of operation."""

    seconds: float
    by_kind: Mapping[OperationKind, float]
    calls: Mapping[OperationKind, float]


def measure_decode(engine: Engine, position: int, budget_s: float, around: Surroundings) -> PhasePoint | None:
    """Decode from `position` on, which is what the context holds; None where the kernels have no trace."""
    decoder = decoder_of(engine)
    fill_cache(decoder, position)
    tracer = Tracer(decoder)
    traced: list[TokenTime] = []
    plain: list[TokenTime] = []
    start = time.perf_counter()
    for block in range(MOST_BLOCKS):
        traced += time_tokens(engine, BLOCK_TOKENS, tracer=tracer)
        if not tracer.works:
            return None
        plain += time_tokens(engine, BLOCK_TOKENS)
        if block + 1 >= LEAST_BLOCKS and time.perf_counter() - start > budget_s:
            break
    ticks_per_s = find_tick_rate([(token.counter, token.counter_seconds) for token in traced])
    steps = [_split_token(token, ticks_per_s) for token in traced]
    middle = position + BLOCK_TOKENS // 2
    costs = estimate_step(decoder.bundle.manifest, StepShape(1, middle), kv_bits=decoder.kv_bits)
    return _describe("decode", decoder, 1, middle, steps, [token.seconds for token in plain], costs, around)


def measure_prefill(engine: Engine, budget_s: float, around: Surroundings) -> PhasePoint | None:
    """Read a prompt of PREFILL_STEPS native steps into an empty context; None where the kernels have no trace.

    On a device that takes longer for that than the budget, a prompt of one step.
    """
    decoder = decoder_of(engine)
    tokens_per_step = min(abi.MAX_TOKENS, decoder.context_length // PREFILL_STEPS)
    prompt = plain_tokens(decoder.config.vocab_size, tokens_per_step * PREFILL_STEPS)
    tracer = Tracer(decoder)
    # the first pass touches memory for the first time, and says how fast this device is
    _, first_counter, first_s = _trace_prompt(decoder, tracer, prompt[:tokens_per_step], tokens_per_step)
    if not tracer.works:
        return None
    n_steps = PREFILL_STEPS if PREFILL_STEPS * first_s <= budget_s else 1
    least = 3 if n_steps * first_s <= budget_s else 1
    prompt = prompt[: n_steps * tokens_per_step]
    counters = [first_counter]
    traced: list[tuple[float, Marks]] = []
    plain: list[float] = []
    start = time.perf_counter()
    while len(traced) < MOST_BLOCKS and (len(traced) < least or time.perf_counter() - start < budget_s):
        marks, counter, seconds = _trace_prompt(decoder, tracer, prompt, tokens_per_step)
        traced.append((seconds, marks))
        counters.append(counter)
        plain.append(_time_prompt(decoder, prompt, tokens_per_step)[0])
    decoder.rewind(0)
    rate = find_tick_rate(counters)
    steps = [_split_prompt(seconds / n_steps, marks, rate * n_steps, n_steps) for seconds, marks in traced]
    costs = _mean_prefill_cost(decoder, tokens_per_step, n_steps)
    middle = tokens_per_step * n_steps // 2
    plain_steps = [seconds / n_steps for seconds in plain]
    return _describe("prefill", decoder, tokens_per_step, middle, steps, plain_steps, costs, around)


def _trace_prompt(
    decoder: Decoder, tracer: Tracer, prompt: list[int], tokens_per_step: int
) -> tuple[Marks, tuple[int, float], float]:
    """(what was marked, the kernels' counter and the clock at the end, seconds) of reading a prompt."""
    tracer.switch(True)
    before = tracer.read()
    seconds, ended = _time_prompt(decoder, prompt, tokens_per_step)
    tracer.switch(False)
    after = tracer.read()
    return after.since(before), (after.counter, ended), seconds


def _split_prompt(step_seconds: float, marks: Marks, ticks_per_s: float, n_steps: int) -> _Step:
    by_kind = dict(zip(TRACED, (marks.ticks / ticks_per_s).tolist(), strict=True))
    by_kind["python"] = max(0.0, step_seconds - sum(by_kind.values()))
    return _Step(step_seconds, by_kind, dict(zip(TRACED, (marks.calls / n_steps).tolist(), strict=True)))


def find_tick_rate(pairs: Sequence[tuple[int, float]]) -> float:
    """Counter ticks in a second, from (counter, seconds) at two or more moments."""
    (first, begun), (last, ended) = pairs[0], pairs[-1]
    assert last > first and ended > begun, "the counter and the clock go forward"
    return (last - first) / (ended - begun)


def _split_token(token: TokenTime, ticks_per_s: float) -> _Step:
    assert token.marks is not None
    by_kind = dict(zip(TRACED, (token.marks.ticks / ticks_per_s).tolist(), strict=True))
    by_kind["sampling"] = token.sampling_seconds
    by_kind["python"] = max(0.0, token.seconds - sum(by_kind.values()))
    calls = dict(zip(TRACED, token.marks.calls.tolist(), strict=True))
    return _Step(token.seconds, by_kind, {**calls, "sampling": 1.0})


def _time_prompt(decoder: Decoder, prompt: list[int], tokens_per_step: int) -> tuple[float, float]:
    """(seconds, clock after the last native step) of reading a prompt into an empty context."""
    decoder.rewind(0)
    start = time.perf_counter()
    for at in range(0, len(prompt), tokens_per_step):
        decoder.forward(prompt[at : at + tokens_per_step])
    end = time.perf_counter()
    return end - start, end


def _mean_prefill_cost(decoder: Decoder, tokens: int, n_steps: int) -> Mapping[OperationKind, Estimates]:
    """Cost of the mean step of a prompt; every step ends with one row of logits."""
    manifest = decoder.bundle.manifest
    total: dict[OperationKind, Estimates] = {}
    for step in range(n_steps):
        for kind, cost in estimate_step(manifest, StepShape(tokens, step * tokens), kv_bits=decoder.kv_bits).items():
            total[kind] = total[kind] + cost if kind in total else cost
    return {kind: Estimates(cost.operations // n_steps, cost.bytes // n_steps) for kind, cost in total.items()}


def _describe(
    phase: PhaseKind,
    decoder: Decoder,
    tokens_per_step: int,
    context_tokens: int,
    steps: Sequence[_Step],
    plain: Sequence[float],
    costs: Mapping[OperationKind, Estimates],
    around: Surroundings,
) -> PhasePoint:
    seconds, untraced = summarize([step.seconds for step in steps]), summarize(plain)
    bytes_per_step = sum(cost.bytes for cost in costs.values())
    bits = find_bits(decoder.bundle.manifest)
    operations: list[OperationPoint] = []
    kinds: tuple[OperationKind, ...] = (*TRACED, "sampling", "python")
    for kind in kinds:
        values = [step.by_kind.get(kind, 0.0) for step in steps]
        if not any(values):
            continue
        operations.append(
            place_operation(
                kind=kind,
                seconds=summarize(values),
                calls=float(np.median([step.calls.get(kind, 1.0) for step in steps])),
                step_seconds=seconds.median,
                cost=costs.get(kind),
                roofs=around.roofs,
                memory_roof=choose_memory_roof(kind, bytes_per_step, around.caches),
                compute_roof=choose_compute_roof(kind, bits.get(kind), decoder.activations),
            )
        )
    return PhasePoint(
        phase=phase,
        threads=decoder.n_threads,
        tokens_per_step=tokens_per_step,
        context_tokens=context_tokens,
        seconds_per_step=seconds,
        untraced_seconds_per_step=untraced,
        tracing_share=_compare(seconds, untraced),
        tokens_per_second=invert(untraced, tokens_per_step),
        bytes_per_step=bytes_per_step,
        operations_per_step=sum(cost.operations for cost in costs.values()),
        operations=tuple(operations),
    )


def _compare(traced: Measurement, plain: Measurement) -> float:
    """What tracing adds: to the shortest steps, which nothing has disturbed."""
    share = traced.minimum / plain.minimum - 1 if plain.minimum > 0 else 0.0
    return min(max(share, -1.0), 10.0)
