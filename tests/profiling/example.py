"""A measured profile written by hand: a small board with four cores and a 135M model, every part of the schema in it.

No figure here was measured; they are plausible and fit together (bytes ÷ seconds, shares that sum to one).
"""

from __future__ import annotations

from dataclasses import replace

from edgeawq.profiling.schema import (
    FORMAT_VERSION,
    BandwidthPoint,
    BarrierPoint,
    CacheFacts,
    ClockPoint,
    ColdStart,
    ComputePoint,
    DeviceFacts,
    EnergyPoint,
    FirstTokenPoint,
    LinearFacts,
    Measurement,
    ModelProfile,
    OperationPoint,
    PagePoint,
    PhasePoint,
    Profile,
    Roof,
    Sample,
    SpeedPoint,
    StoragePoint,
    Unavailable,
)

KIB, MIB = 1 << 10, 1 << 20
CACHES = (("L1", 32 * KIB, 60e9), ("L2", 512 * KIB, 25e9), ("DRAM", 1 << 40, 9e9))
DRAM, PEAK = 12e9, 500e9
LAYERS, HIDDEN, WIDE, INTERMEDIATE, VOCABULARY = 30, 576, 960, 1536, 49152


def spread(median: float, share: float = 0.02) -> Measurement:
    """A measurement whose middle half is `share` of the median wide."""
    half = median * share / 2
    return Measurement(median, median - 2 * half, median - half, median + half, median + 2 * half, 20)


def make_profile(
    *, name: str = "board", created: str = "2026-01-31T12:00:00Z", decode_scale: float = 1.0, model: bool = True
) -> Profile:
    """The example; decode_scale makes every operation of a decode step take so many times as long."""
    return Profile(
        format="edgeawq-profile",
        format_version=FORMAT_VERSION,
        tool_version="0.1.0",
        created=created,
        seconds=96.0,
        complete=True,
        device=DeviceFacts(
            name=name,
            model="Example board, 4 cores",
            machine="aarch64",
            isa="neon_dotprod",
            cpus=4,
            memory_bytes=4 << 30,
            page_bytes=4096,
            caches=(CacheFacts(1, 32 * KIB, 1), CacheFacts(2, 512 * KIB, 1)),
            max_clock_hertz=2.4e9,
            governor="performance",
            kernel="6.6.0",
            virtual_machine=False,
        ),
        samples=tuple(
            Sample(10.0 * i, ["memory", "compute", "decode"][min(i // 3, 2)], 2.4e9, 45.0 + 2 * i, 0.5, 0.01, 0.0)
            for i in range(9)
        ),
        notes=(),
        unavailable=(Unavailable("fp16", "the kernels of this instruction set have none"),),
        clock=tuple(ClockPoint(n, spread(2.39e9, 0.001)) for n in (1, 2, 4)),
        memory=_memory(),
        compute=tuple(
            ComputePoint(kind, "neon_dotprod", n, spread(peak * n / 4), peak / 4 / 2.39e9)
            for kind, peak in (("fp32", 150e9), ("int8_nibbles", PEAK), ("int8_bytes", 590e9))
            for n in (1, 2, 4)
        ),
        barrier=(BarrierPoint(2, spread(0.9e-6, 0.1)), BarrierPoint(4, spread(1.6e-6, 0.1))),
        pages=(
            PagePoint("zeroed", 64 * MIB, spread(6e-7), spread(6.8e9)),
            PagePoint("mapped", 64 * MIB, spread(2e-7), spread(20e9)),
        ),
        storage=(StoragePoint("direct", True, 88 * MIB, MIB, spread(45e6, 0.05)),),
        energy=(
            EnergyPoint("ina3221 VDD_IN", "board", "idle", 24.0, 10.0, 0, 2.4, None),
            EnergyPoint("ina3221 VDD_IN", "board", "decode", 65.0, 10.0, 880, 6.5, 13.5),
        ),
        roofs=(
            Roof("memory", "L1", 4, 240e9, None),
            Roof("memory", "L2", 4, 100e9, None),
            Roof("memory", "DRAM", 2, DRAM, None),
            Roof("compute", "fp32", 4, None, 150e9),
            Roof("compute", "int8_nibbles", 4, None, PEAK),
            Roof("compute", "int8_bytes", 4, None, 590e9),
        ),
        model=_model(decode_scale) if model else None,
    )


def _memory() -> tuple[BandwidthPoint, ...]:
    points = []
    for kind, part in (("read", 1.0), ("copy", 0.8), ("triad", 0.85)):
        for threads in (1, 2, 4):
            for power in range(14, 28, 2):
                level, _, one = next(c for c in CACHES if (1 << power) / threads <= c[1])
                rate = one * threads if level != "DRAM" else min(one * threads, DRAM * (1 if threads == 2 else 0.97))
                points.append(BandwidthPoint(kind, threads, 1 << power, level, spread(part * rate)))  # type: ignore[arg-type]
    return tuple(points)


def linear_bytes(out_features: int, in_features: int, bits: int, group_size: int = 64) -> int:
    """Bytes of a matrix with float16 scales and zeros of at least four bits."""
    return out_features * (in_features * bits + in_features // group_size * (16 + max(bits, 4))) // 8


def _operation(kind: str, calls: int, seconds: float, step: float, nbytes: int, operations: int) -> OperationPoint:
    if not nbytes:
        return OperationPoint(
            kind, calls, spread(seconds), seconds / step, 0, 0, None, None, None, None, None, None, None  # type: ignore[arg-type]
        )  # fmt: skip
    intensity = operations / nbytes
    attainable = min(PEAK, DRAM * intensity) if operations else None
    return OperationPoint(
        kind=kind,  # type: ignore[arg-type]
        calls=calls,
        seconds=spread(seconds),
        share_of_step=seconds / step,
        bytes=nbytes,
        operations=operations,
        bytes_per_second=nbytes / seconds,
        ops_per_second=operations / seconds,
        ops_per_byte=intensity,
        memory_roof="DRAM",
        compute_roof="int8_nibbles",
        bound_by="memory" if intensity < PEAK / DRAM else "compute",
        share_of_roof=None if not attainable else operations / seconds / attainable,
    )


def _phase(name: str, tokens: int, context: int, scale: float, reached: float) -> PhasePoint:
    """A step whose matrices reach `reached` of the DRAM roof (decode) or of the peak (prefill)."""
    shapes = {
        "qkv": (LAYERS, WIDE, HIDDEN, 4),
        "o": (LAYERS, HIDDEN, HIDDEN, 4),
        "gate_up": (LAYERS, 2 * INTERMEDIATE, HIDDEN, 4),
        "down": (LAYERS, HIDDEN, INTERMEDIATE, 4),
        "head": (1, VOCABULARY, HIDDEN, 8),
    }
    parts: list[tuple[str, int, float, int, int]] = []
    for kind, (calls, rows, columns, bits) in shapes.items():
        rows_of_tokens = 1 if kind == "head" else tokens
        nbytes = calls * (linear_bytes(rows, columns, bits) + rows_of_tokens * (columns + 4 * rows))
        operations = 2 * calls * rows * columns * rows_of_tokens
        seconds = scale * max(nbytes / DRAM, operations / PEAK) / reached
        parts.append((kind, calls, seconds, nbytes, operations))
    attended = 4 * LAYERS * HIDDEN * tokens * max(context, 1)
    cached = 4 * LAYERS * 192 * max(context, 1)
    parts.append(("attention", LAYERS, scale * max(cached / DRAM, attended / 60e9) + 1e-4, cached, attended))
    small = [("embedding", 1, 2e-6), ("norm", 61, 2e-6), ("merge", 30, 1e-6), ("quantize", 30, 2e-6)]
    small += [("barrier", 151, 1.5e-6), ("sampling", 1, 6e-5), ("python", 1, 1.2e-4)]
    parts += [(kind, calls, scale * calls * each, 0, 0) for kind, calls, each in small]
    step = sum(part[2] for part in parts)
    operations = tuple(_operation(k, calls, seconds, step, nb, ops) for k, calls, seconds, nb, ops in parts)
    return PhasePoint(
        phase=name,  # type: ignore[arg-type]
        threads=4,
        tokens_per_step=tokens,
        context_tokens=context,
        seconds_per_step=spread(step),
        untraced_seconds_per_step=spread(step * 0.993),
        tracing_share=0.007,
        tokens_per_second=spread(tokens / (step * 0.993)),
        bytes_per_step=sum(part[3] for part in parts),
        operations_per_step=sum(part[4] for part in parts),
        operations=operations,
    )


def _model(scale: float) -> ModelProfile:
    decode = [_phase("decode", 1, context, scale, 0.83) for context in (64, 2048)]
    fast = decode[0].tokens_per_second.median
    linears = {
        "embedding": (VOCABULARY, HIDDEN, 8, 1),
        "qkv": (WIDE, HIDDEN, 4, LAYERS),
        "o": (HIDDEN, HIDDEN, 4, LAYERS),
        "gate_up": (2 * INTERMEDIATE, HIDDEN, 4, LAYERS),
        "down": (HIDDEN, INTERMEDIATE, 4, LAYERS),
        "head": (VOCABULARY, HIDDEN, 8, 1),
    }
    return ModelProfile(
        name="smollm2-135m-instruct",
        bundle="smollm2-board.edgeawq",
        profile="pi5",
        isa="neon_dotprod",
        activations="int8",
        kv_bits=16,
        threads=4,
        context_length=4096,
        weights_bytes=88 * 10**6,
        memory_bytes=97 * 10**6,
        kv_bytes_per_token=4 * LAYERS * 192,
        linears=tuple(
            LinearFacts(kind, bits, 64, n * rows * columns, n * linear_bytes(rows, columns, bits))  # type: ignore[arg-type]
            for kind, (rows, columns, bits, n) in linears.items()
        ),
        phases=(_phase("prefill", 64, 256, 1.0, 0.6), *decode),
        decode_by_context=tuple(
            SpeedPoint(c, 4, spread(1 / (1 / fast + c * 4 * LAYERS * 192 / 4e9))) for c in (64, 512, 1024, 2048, 4000)
        ),
        decode_by_threads=tuple(
            SpeedPoint(64, n, spread(fast * part)) for n, part in ((1, 0.62), (2, 0.97), (3, 0.99), (4, 1.0))
        ),
        first_token=tuple(FirstTokenPoint(n, spread(0.02 + n / 900)) for n in (16, 64, 256, 1024)),
        cold_start=(
            ColdStart(True, spread(3.1, 0.1), 0.5, 0.25, 2.1, 88 * 10**6),
            ColdStart(False, spread(0.9, 0.05), 0.5, 0.2, 0.03, 0),
        ),
    )


def with_model(profile: Profile, **changes: object) -> Profile:
    """The profile with fields of its model replaced."""
    assert profile.model is not None
    return replace(profile, model=replace(profile.model, **changes))  # type: ignore[arg-type]
