from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeawq.profiling.health import WELL_BELOW, judge_health
from edgeawq.profiling.schema import Note, Profile
from tests.profiling.example import make_profile, with_model
from tests.profiling.profiles import profiles


def past(count: int) -> list[Profile]:
    return [make_profile(created=f"2026-01-{day:02}T00:00:00Z") for day in range(1, count + 1)]


def test_nothing_was_measured() -> None:
    assert judge_health([]) is None


def test_a_steady_device_is_as_expected() -> None:
    health = judge_health(past(4))
    assert health is not None and not health.is_slow and health.drops == ()
    assert health.expected_from == "its own past"
    assert health.share_of_expected == 1.0


def test_a_device_well_below_its_past_is_flagged() -> None:
    slow = make_profile(created="2026-02-01T00:00:00Z", decode_scale=1.5)
    noted = replace(slow, notes=(Note("low_voltage", "", 3.0, "the supply was too weak"),))
    health = judge_health([*past(3), noted])
    assert health is not None and health.is_slow
    assert health.drops[0].title == "decode at 64 tokens"
    assert health.drops[0].now < WELL_BELOW * health.drops[0].past
    assert health.drops[0].profiles == 3
    assert health.disturbed_by == ("low_voltage",)


def test_one_bad_measurement_in_the_past_does_not_hide_a_drop() -> None:
    slow = make_profile(created="2026-02-01T00:00:00Z", decode_scale=1.5)
    health = judge_health([make_profile(decode_scale=1.5, created="2025-01-01T00:00:00Z"), *past(3), slow])
    assert health is not None and health.is_slow


def test_another_model_is_no_past() -> None:
    other = with_model(make_profile(created="2026-02-01T00:00:00Z", decode_scale=1.5), name="other", weights_bytes=7)
    health = judge_health([*past(3), other], 50.0, "the profile pi5")
    assert health is not None and health.drops == ()
    assert (health.expected_tokens_per_s, health.expected_from) == (50.0, "the profile pi5")
    assert not health.is_slow
    assert judge_health([*past(3), other], 500.0, "the profile pi5").is_slow  # type: ignore[union-attr]


def test_memory_is_watched_whatever_the_model() -> None:
    slow = make_profile(created="2026-02-01T00:00:00Z", model=False)
    roofs = tuple(replace(roof, bytes_per_second=5e9) if roof.name == "DRAM" else roof for roof in slow.roofs)
    health = judge_health([*past(2), replace(slow, roofs=roofs)])
    assert health is not None and [drop.title for drop in health.drops] == ["read from DRAM"]
    assert health.decode_tokens_per_s is None and health.share_of_expected is None


@settings(max_examples=30, deadline=None)
@given(st.lists(profiles(), min_size=1, max_size=3))
def test_any_history_can_be_judged(history: list[Profile]) -> None:
    health = judge_health(history)
    assert health is not None and health.created == history[-1].created
