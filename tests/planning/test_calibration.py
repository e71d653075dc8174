from __future__ import annotations

from dataclasses import replace

import pytest

from device_profiles.profile import load_profile
from edgeawq.planning.calibration import apply_measured, calibrate
from edgeawq.planning.device import describe_device
from edgeawq.planning.plan import Workload, make_plan
from edgeawq.planning.shape import ModelShape, read_shape
from edgeawq.profiling.schema import Note
from tests.profiling.example import make_profile, with_model


def expected_speed(shape: ModelShape, scheme: str, prompt: int) -> float:
    profile = make_profile()
    device = apply_measured(describe_device(load_profile("pi5")), profile)
    plan = make_plan(shape, device, Workload(prompt_tokens=prompt), calibrate(profile))
    choice = next(choice for choice in plan.choices if str(choice.scheme) == scheme)
    assert choice.decode.expected_s is not None
    return 1 / choice.decode.expected_s


def test_the_measured_model_itself_is_predicted_as_measured() -> None:
    profile = make_profile()
    assert profile.model is not None
    for phase, context in ((profile.model.phases[1], 64),):
        speed = expected_speed(read_shape("smollm2-135m"), "w4g64", context)
        assert speed == pytest.approx(phase.tokens_per_second.median, rel=0.05)


def test_a_larger_model_is_slower_by_its_bytes() -> None:
    small, large = (expected_speed(read_shape(name), "w4g64", 64) for name in ("smollm2-135m", "smollm2-360m"))
    assert 2.0 < small / large < 3.0


def test_measured_roofs_take_the_place_of_the_profiles() -> None:
    device = describe_device(load_profile("pi5"))
    measured = apply_measured(device, make_profile())
    assert measured.bandwidth is not None and measured.bandwidth.value == 12e9
    assert measured.bandwidth.kind == "measured" and "2026-01-31" in measured.bandwidth.source
    assert measured.peak_ops is not None and measured.peak_ops.value == 500e9
    assert measured.decode_efficiency is not None and measured.decode_efficiency.kind == "measured"
    assert measured.decode_efficiency.value == pytest.approx(0.776, abs=0.01)
    assert measured.prefill_efficiency is not None and 0.4 < measured.prefill_efficiency.value < 0.7


def test_a_rate_from_the_cache_says_nothing_of_a_larger_model() -> None:
    profile = make_profile()
    roofs = tuple(replace(r, bytes_per_second=8e9) if r.name == "DRAM" else r for r in profile.roofs)
    cached = replace(profile, roofs=roofs, memory=())
    calibration = calibrate(cached)
    assert calibration is not None and calibration.is_from_cache
    device = apply_measured(describe_device(load_profile("pi5")), cached)
    small, large = (
        make_plan(read_shape(name), device, Workload(prompt_tokens=64), calibration).choices
        for name in ("smollm2-135m", "tinyllama-1.1b")
    )
    assert any(choice.is_calibrated for choice in small)
    assert device.decode_efficiency is not None
    for choice in large:
        assert not choice.is_calibrated
        assert choice.decode.expected_s is not None and choice.decode.ceiling_s is not None
        assert choice.decode.expected_s == pytest.approx(choice.decode.ceiling_s / device.decode_efficiency.value)
    ordinary = calibrate(profile)
    assert ordinary is not None and not ordinary.is_from_cache and ordinary.applies_to(10**12)


def test_a_disturbed_measurement_is_named_as_such() -> None:
    profile = replace(make_profile(), notes=(Note("busy", "decode", 1.0, "another program"),))
    calibration = calibrate(profile)
    assert calibration is not None and calibration.source.endswith("disturbed: busy")
    bandwidth = apply_measured(describe_device(load_profile("pi5")), profile).bandwidth
    assert bandwidth is not None and "disturbed: busy" in bandwidth.source


def test_a_model_in_the_caches_says_nothing_of_memory() -> None:
    profile = make_profile()
    roofs = tuple(replace(r, bytes_per_second=5e9) if r.name == "DRAM" else r for r in profile.roofs)
    device = describe_device(load_profile("pi5"))
    measured = apply_measured(device, replace(profile, roofs=roofs))
    assert measured.decode_efficiency == device.decode_efficiency


def test_what_was_not_measured_stays_the_profiles() -> None:
    device = describe_device(load_profile("pi5"))
    assert apply_measured(device, replace(make_profile(), roofs=())) == device
    bare = apply_measured(device, make_profile(model=False))
    assert bare.decode_efficiency == device.decode_efficiency
    gpu = describe_device(load_profile("orin-agx"))
    assert apply_measured(gpu, make_profile()) == gpu
    assert calibrate(make_profile(model=False)) is None
    assert calibrate(with_model(make_profile(), phases=())) is None
