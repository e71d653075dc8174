from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.profile import load_profile
from device_profiles.roofline import (
    attainable_flop_per_s,
    bounded_by,
    decode_ceiling_tokens_per_s,
    gaussian_rounding_error,
    gemv_intensity_flop_per_byte,
    loop_ops_per_s,
    ridge_point,
    time_at_roof_s,
    weight_bytes,
)
from edgeawq.errors import ProfileError

RATE = st.floats(min_value=1e3, max_value=1e16)
INTENSITY = st.floats(min_value=1e-3, max_value=1e5)


def test_ridge_point_of_the_awq_paper() -> None:
    # "RTX 4090 has a peak of 165 TFLOP/s and 1 TB/s": section 4.1
    assert ridge_point(165e12, 1e12) == 165.0


def test_intensity_of_the_awq_paper() -> None:
    # generation at batch 1: about 1 FLOP/byte at FP16, about 4 with 4-bit weights
    assert gemv_intensity_flop_per_byte(16) == 1.0
    assert gemv_intensity_flop_per_byte(4) == 4.0
    assert gemv_intensity_flop_per_byte(16, batch=8) == 8.0


@pytest.mark.parametrize(("device", "published"), [("pi4", 1.6), ("pi5", 3.6), ("orin-agx", 50.0)])
def test_decode_ceilings_of_a_7b_model(device: str, published: float) -> None:
    bytes_per_token = weight_bytes(6.74e9, 4.156)  # Llama-2-7B, w4g128
    assert bytes_per_token == pytest.approx(3.5e9, rel=0.01)
    bandwidth = load_profile(device).bandwidth_bytes_per_s
    assert bandwidth is not None
    assert decode_ceiling_tokens_per_s(bandwidth, bytes_per_token) == pytest.approx(published, rel=0.02)


@given(peak=RATE, bandwidth=RATE, intensity=INTENSITY)
def test_the_roof_is_the_lower_of_both_limits(peak: float, bandwidth: float, intensity: float) -> None:
    rate = attainable_flop_per_s(peak, bandwidth, intensity)
    assert rate <= peak
    assert rate <= bandwidth * intensity
    assert rate == peak or rate == bandwidth * intensity
    if bounded_by(peak, bandwidth, intensity) == "memory":
        assert rate == pytest.approx(bandwidth * intensity)
    else:
        assert rate == pytest.approx(peak)


@given(peak=RATE, bandwidth=RATE)
def test_both_limits_meet_at_the_ridge(peak: float, bandwidth: float) -> None:
    ridge = ridge_point(peak, bandwidth)
    assert attainable_flop_per_s(peak, bandwidth, ridge) == pytest.approx(peak)
    assert bounded_by(peak, bandwidth, ridge) == "compute"
    assert bounded_by(peak, bandwidth, math.nextafter(ridge, 0)) == "memory"


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_numbers_that_make_no_sense_are_refused(value: float) -> None:
    with pytest.raises(ProfileError, match="bytes_per_token"):
        decode_ceiling_tokens_per_s(1e9, value)
    with pytest.raises(ProfileError, match="peak_flop_per_s"):
        ridge_point(value, 1e9)


AMOUNT = st.floats(min_value=0, max_value=1e15)


@given(moved=AMOUNT, operations=AMOUNT, bandwidth=RATE, peak=RATE)
def test_time_at_the_roof_is_the_attainable_rate(
    moved: float, operations: float, bandwidth: float, peak: float
) -> None:
    seconds = time_at_roof_s(moved, operations, bandwidth, peak)
    assert seconds >= time_at_roof_s(moved, operations, bandwidth)
    assert seconds >= time_at_roof_s(0, operations, bandwidth, peak)
    if moved > 1 and operations > 1:
        rate = attainable_flop_per_s(peak, bandwidth, operations / moved)
        assert operations / seconds == pytest.approx(rate)


@given(moved=AMOUNT, operations=AMOUNT, bandwidth=RATE, peak=RATE, factor=st.floats(1, 1e3))
def test_a_better_machine_is_never_slower(
    moved: float, operations: float, bandwidth: float, peak: float, factor: float
) -> None:
    seconds = time_at_roof_s(moved, operations, bandwidth, peak)
    assert time_at_roof_s(moved, operations, bandwidth * factor, peak) <= seconds
    assert time_at_roof_s(moved, operations, bandwidth, peak * factor) <= seconds
    assert time_at_roof_s(moved * factor, operations, bandwidth, peak) >= seconds


def test_a_loop_at_the_multipliers_limit_is_the_peak() -> None:
    # A Cortex-A72 multiplies 8 int8 pairs a cycle: 4 cycles for 32 weights are the profile's peak.
    profile = load_profile("pi4")
    assert profile.clock_hz is not None
    assert loop_ops_per_s(profile.cores, profile.clock_hz, 4.0) == profile.peak_int8_op_per_s


@given(bits=st.integers(2, 8), group=st.integers(5, 9))
def test_more_bits_and_smaller_groups_round_less(bits: int, group: int) -> None:
    error = gaussian_rounding_error(bits, 1 << group)
    assert gaussian_rounding_error(bits + 1, 1 << group) < 0.55 * error
    assert gaussian_rounding_error(bits, 1 << (group - 1)) < error


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_amounts_that_make_no_sense_are_refused(value: float) -> None:
    with pytest.raises(ProfileError, match="moved_bytes"):
        time_at_roof_s(value, 1.0, 1e9)
    with pytest.raises(ProfileError, match="no grid"):
        gaussian_rounding_error(0, 64)
