"""Roofs from measurements, and the arithmetic of an operation under them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_kernels.estimates import Estimates
from edgeawq.profiling.measure.bandwidth import choose_arena, list_sizes, name_level
from edgeawq.profiling.measure.roofs import choose_compute_roof, choose_memory_roof, find_roofs, place_operation
from edgeawq.profiling.measure.statistics import summarize
from edgeawq.profiling.schema import BandwidthPoint, CacheFacts, ComputePoint, Roof

CACHES = (CacheFacts(1, 32 << 10, 1), CacheFacts(2, 1 << 20, 4))
RATES = st.floats(1e6, 1e14)


def read_point(threads: int, size: int, rate: float) -> BandwidthPoint:
    return BandwidthPoint("read", threads, size, name_level(CACHES, size, threads), summarize([rate]))


def make_roofs(bandwidth: float, peak: float) -> tuple[Roof, ...]:
    return (Roof("memory", "DRAM", 1, bandwidth, None), Roof("compute", "int8_nibbles", 1, None, peak))


@given(
    bandwidth=RATES,
    peak=RATES,
    operations=st.integers(1, 10**12),
    bytes_=st.integers(1, 10**12),
    s=st.floats(1e-9, 1e3),
)
def test_the_share_of_the_roof_is_rate_over_what_is_attainable(
    bandwidth: float, peak: float, operations: int, bytes_: int, s: float
) -> None:
    roofs = make_roofs(bandwidth, peak)
    cost = Estimates(operations, bytes_)
    point = place_operation("qkv", summarize([s]), 1, s, cost, roofs, "DRAM", "int8_nibbles")
    intensity = operations / bytes_
    assert point.ops_per_byte == pytest.approx(intensity)
    # both ways to say it: the longer of the two times that the roofs allow is the least time
    least = max(bytes_ / bandwidth, operations / peak)
    assert point.share_of_roof == pytest.approx(min(least / s, 1000.0))
    assert point.bound_by == ("memory" if intensity < peak / bandwidth else "compute")
    assert point.share_of_step == 1.0


@given(
    bandwidth=RATES,
    peak=RATES,
    operations=st.integers(1, 10**9),
    bytes_=st.integers(1, 10**9),
    factor=st.floats(1.01, 50),
)
def test_a_higher_roof_never_raises_the_share(
    bandwidth: float, peak: float, operations: int, bytes_: int, factor: float
) -> None:
    def share(roofs: tuple[Roof, ...]) -> float:
        cost = Estimates(operations, bytes_)
        found = place_operation("qkv", summarize([1.0]), 1, 1.0, cost, roofs, "DRAM", "int8_nibbles").share_of_roof
        assert found is not None
        return found

    before = share(make_roofs(bandwidth, peak))
    assert share(make_roofs(bandwidth * factor, peak)) <= before * (1 + 1e-9)
    assert share(make_roofs(bandwidth, peak * factor)) <= before * (1 + 1e-9)


def test_without_a_cost_or_a_roof_there_is_no_share() -> None:
    waiting = place_operation("barrier", summarize([0.5]), 9, 1.0, None, make_roofs(1e9, 1e9), "DRAM", "int8_nibbles")
    assert (waiting.bytes, waiting.share_of_roof, waiting.share_of_step) == (0, None, 0.5)
    bare = place_operation("qkv", summarize([0.5]), 9, 1.0, Estimates(8, 4), (), "DRAM", "int8_nibbles")
    assert (bare.memory_roof, bare.share_of_roof, bare.bytes_per_second) == (None, None, 8.0)


def test_each_level_has_the_best_rate_of_sets_that_clearly_lie_in_it() -> None:
    points = [
        read_point(1, 16 << 10, 90e9),
        read_point(1, 31 << 10, 95e9),  # so near the edge that it does not count
        read_point(1, 128 << 10, 40e9),
        read_point(4, 512 << 10, 60e9),
        read_point(1, 64 << 20, 5e9),
        read_point(4, 32 << 20, 8e9),  # a cache of another level keeps a part of it
        read_point(4, 64 << 20, 6e9),
        BandwidthPoint("copy", 4, 64 << 20, "DRAM", summarize([99e9])),
    ]
    compute = [
        ComputePoint("fp32", "neon", 1, summarize([10e9]), None),
        ComputePoint("fp32", "neon", 4, summarize([39e9]), None),
        ComputePoint("int8_bytes", "neon", 4, summarize([80e9]), None),
    ]
    roofs = {(roof.kind, roof.name): roof for roof in find_roofs(points, compute, CACHES)}
    assert roofs["memory", "L1"].bytes_per_second == 90e9
    assert (roofs["memory", "L2"].bytes_per_second, roofs["memory", "L2"].threads) == (60e9, 4)
    assert (roofs["memory", "DRAM"].bytes_per_second, roofs["memory", "DRAM"].threads) == (6e9, 4)
    assert roofs["compute", "fp32"].ops_per_second == 39e9
    assert ("compute", "int8_nibbles") not in roofs


def test_nothing_measured_no_roofs() -> None:
    assert find_roofs([], [], CACHES) == () and find_roofs([], [], ()) == ()


def test_weights_come_from_where_a_whole_step_fits() -> None:
    assert choose_memory_roof("down", 100 << 20, CACHES) == "DRAM"
    assert choose_memory_roof("down", 500 << 10, CACHES) == "L2"
    assert choose_memory_roof("norm", 100 << 20, CACHES) == "L1"  # its row was written a moment ago
    assert choose_memory_roof("norm", 100 << 20, ()) == "DRAM"


@pytest.mark.parametrize(
    ("bits", "activations", "expected"),
    [
        (4, "int8", "int8_nibbles"),
        (2, "int8", "int8_nibbles"),
        (8, "int8", "int8_bytes"),
        (4, "float", "fp32"),
        (None, "int8", "fp32"),
    ],
)
def test_the_arithmetic_follows_the_weights(bits: int | None, activations: str, expected: str) -> None:
    assert choose_compute_roof("qkv", bits, activations) == expected


@given(st.integers(1, 64), st.integers(1 << 20, 1 << 32), st.booleans())
def test_working_sets_ascend_and_end_with_the_arena(threads: int, arena: int, fine: bool) -> None:
    sizes = list_sizes(threads, arena, fine=fine)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == arena and sizes[0] == threads * 8192
    assert all(2 * before >= after for before, after in zip(sizes, sizes[1:], strict=False))


@given(st.lists(st.integers(1 << 10, 1 << 30), max_size=4), st.integers(0, 1 << 40))
def test_the_arena_leaves_memory_to_others(sizes: list[int], available: int) -> None:
    caches = [CacheFacts(level + 1, size, 1) for level, size in enumerate(sorted(sizes))]
    arena = choose_arena(caches, available)
    assert 4 << 20 <= arena <= 512 << 20
    assert arena <= max(available // 4, 4 << 20)


def test_a_share_belongs_to_the_smallest_cache_that_holds_it() -> None:
    assert name_level(CACHES, 32 << 10, 1) == "L1"
    assert name_level(CACHES, 128 << 10, 4) == "L1"
    assert name_level(CACHES, 1 << 20, 4) == "L2"
    assert name_level(CACHES, (1 << 20) + 4096, 4) == "DRAM"
    assert name_level((), 4096, 1) == "DRAM"
