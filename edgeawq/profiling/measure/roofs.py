"""The roofs of a device, from what was measured, and where an operation stands under them."""

from __future__ import annotations

from collections.abc import Sequence

from cpu_kernels.estimates import Estimates
from device_profiles.roofline import attainable_flop_per_s, bounded_by
from edgeawq.profiling.measure.costs import STREAMED
from edgeawq.profiling.schema import (
    BandwidthPoint,
    CacheFacts,
    ComputePoint,
    Measurement,
    OperationKind,
    OperationPoint,
    Roof,
)

DRAM = "DRAM"


def find_roofs(
    memory: Sequence[BandwidthPoint], compute: Sequence[ComputePoint], caches: Sequence[CacheFacts]
) -> tuple[Roof, ...]:
    """The best read rate of each level of memory and the best rate of each kind of arithmetic, over all threads.

    A cache counts where the working set clearly fits and clearly leaves the cache before; memory, at the largest
    working set of each number of threads: a part of any smaller one may stay in the last cache.
    """
    roofs = []
    reads = [point for point in memory if point.kind == "read"]
    widest: dict[int, int] = {}
    for point in reads:
        widest[point.threads] = max(point.bytes, widest.get(point.threads, 0))
    for name in [f"L{cache.level}" for cache in caches] + [DRAM]:
        points = [point for point in reads if _is_typical(point, name, caches)]
        if name == DRAM:
            points = [point for point in points if point.bytes == widest[point.threads]]
        if points:
            best = max(points, key=lambda point: point.bytes_per_second.median)
            roofs.append(Roof("memory", name, best.threads, best.bytes_per_second.median, None))
    for kind in dict.fromkeys(point.kind for point in compute):
        top = max((p for p in compute if p.kind == kind), key=lambda point: point.ops_per_second.median)
        roofs.append(Roof("compute", kind, top.threads, None, top.ops_per_second.median))
    return tuple(roofs)


def choose_memory_roof(kind: OperationKind, bytes_per_step: int, caches: Sequence[CacheFacts]) -> str:
    """Where an operation's operands come from: a step's weights pass through the caches before they are read again."""
    if kind not in STREAMED:
        return f"L{caches[0].level}" if caches else DRAM
    return next((f"L{cache.level}" for cache in caches if bytes_per_step <= cache.bytes), DRAM)


def choose_compute_roof(kind: OperationKind, bits: int | None, activations: str) -> str:
    """The arithmetic an operation is done in."""
    if bits is None or activations == "float":
        return "fp32"
    return "int8_bytes" if bits == 8 else "int8_nibbles"


def place_operation(
    kind: OperationKind,
    seconds: Measurement,
    calls: float,
    step_seconds: float,
    cost: Estimates | None,
    roofs: Sequence[Roof],
    memory_roof: str,
    compute_roof: str,
) -> OperationPoint:
    """An operation with its rates and its share of the roof; without a cost, only with its time."""
    share = min(1.0, seconds.median / step_seconds) if step_seconds > 0 else 0.0
    if cost is None or not cost.bytes or not cost.operations or seconds.median <= 0:
        return OperationPoint(kind, calls, seconds, share, 0, 0, None, None, None, None, None, None, None)
    rate = cost.operations / seconds.median
    intensity = cost.operations / cost.bytes
    memory = next((roof for roof in roofs if roof.kind == "memory" and roof.name == memory_roof), None)
    compute = next((roof for roof in roofs if roof.kind == "compute" and roof.name == compute_roof), None)
    bound, of_roof = None, None
    if memory and compute and memory.bytes_per_second and compute.ops_per_second:
        bound = bounded_by(compute.ops_per_second, memory.bytes_per_second, intensity)
        attainable = attainable_flop_per_s(compute.ops_per_second, memory.bytes_per_second, intensity)
        of_roof = min(rate / attainable, 1000.0)
    return OperationPoint(
        kind=kind,
        calls=calls,
        seconds=seconds,
        share_of_step=share,
        bytes=cost.bytes,
        operations=cost.operations,
        bytes_per_second=cost.bytes / seconds.median,
        ops_per_second=rate,
        ops_per_byte=intensity,
        memory_roof=memory.name if memory else None,
        compute_roof=compute.name if compute else None,
        bound_by=bound,  # type: ignore[arg-type]
        share_of_roof=of_roof,
    )


def _is_typical(point: BandwidthPoint, name: str, caches: Sequence[CacheFacts]) -> bool:
    share = point.bytes / point.threads
    if name == DRAM:
        last = caches[-1] if caches else None
        return point.bytes >= (2 * last.bytes * -(-point.threads // last.shared_by) if last else 48 << 20)
    index = next(index for index, cache in enumerate(caches) if name == f"L{cache.level}")
    fits = share * min(point.threads, caches[index].shared_by) <= 0.75 * caches[index].bytes
    before = caches[index - 1] if index else None
    return fits and (before is None or share * min(point.threads, before.shared_by) >= 1.5 * before.bytes)
