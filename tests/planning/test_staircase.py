from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeawq.planning.calibration import calibrate
from edgeawq.planning.staircase import fit_staircase
from edgeawq.profiling.schema import BandwidthPoint, Profile
from tests.profiling.example import MIB, make_profile, spread

SIZES = tuple(size * MIB for size in (48, 64, 96, 128, 192, 256))


def with_reads(rates: dict[int, float], threads: int = 4) -> Profile:
    """The example with these reads from DRAM (bytes per second by size) and no others."""
    points = tuple(BandwidthPoint("read", threads, size, "DRAM", spread(rate)) for size, rate in rates.items())
    return replace(make_profile(), memory=points)


def line(rate: float, saved_s: float) -> dict[int, float]:
    return {size: size / (size / rate - saved_s) for size in SIZES}


@given(st.floats(2e9, 500e9), st.floats(0.05, 0.8))
def test_memory_with_a_cache_in_front_is_a_line(rate: float, cached: float) -> None:
    saved_s = cached * SIZES[0] / rate
    found = fit_staircase(with_reads(line(rate, saved_s)), 4)
    assert found is not None and found.smallest_bytes == SIZES[0]
    assert found.bytes_per_s == pytest.approx(rate, rel=1e-6)
    assert found.saved_s == pytest.approx(saved_s, rel=1e-4)
    for size, seen in line(rate, saved_s).items():
        assert size / found.seconds(size) == pytest.approx(seen, rel=1e-6)


def test_one_disturbed_size_does_not_bend_the_line() -> None:
    rates = line(34e9, 0.5e-3)
    rates[SIZES[3]] /= 2
    found = fit_staircase(with_reads(rates), 4)
    assert found is not None
    assert found.bytes_per_s == pytest.approx(34e9, rel=0.05)


def test_no_line_without_sizes_threads_or_a_cache() -> None:
    rates = line(34e9, 0.5e-3)
    assert fit_staircase(with_reads(rates), 2) is None
    assert fit_staircase(with_reads({size: rates[size] for size in SIZES[:2]}), 4) is None
    assert fit_staircase(with_reads(dict.fromkeys(SIZES, 12e9)), 4) is None
    assert fit_staircase(with_reads({size: 12e9 + size for size in SIZES} | {SIZES[-1]: 90e9}), 4) is None


def test_a_larger_model_is_read_no_faster_than_memory_gives() -> None:
    profile = make_profile()
    assert profile.model is not None
    calibration = calibrate(with_reads(line(9e9, 3.0e-3), threads=profile.model.threads))
    assert calibration is not None and calibration.staircase is not None and not calibration.is_from_cache
    own, rate = calibration.weights_bytes, calibration.weights_bytes_per_s
    assert calibration.weights_s(own) == pytest.approx(own / rate)
    assert calibration.weights_s(own // 10) == pytest.approx(own / 10 / rate)
    assert rate > 9.5e9  # the cache helped
    assert calibration.weights_s(100 * own) == pytest.approx(100 * own / 9e9 - 3.0e-3)
    fast_memory = calibrate(with_reads(line(40e9, 0.5e-3), threads=profile.model.threads))
    assert fast_memory is not None and fast_memory.weights_s(100 * own) == pytest.approx(100 * own / rate)
