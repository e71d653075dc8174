from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeawq.errors import UsageError
from edgeawq.profiling.compare import compare_profiles, judge_change
from edgeawq.profiling.schema import Measurement, Profile
from tests.profiling.example import make_profile, spread
from tests.profiling.profiles import measurements, profiles


def test_a_slower_decode_is_a_regression() -> None:
    comparison = compare_profiles([make_profile(), make_profile(decode_scale=1.3)])
    assert {row.key for row in comparison.regressions} == {f"decode.{n}" for n in (64, 512, 1024, 2048, 4000)}
    assert "worse" not in {row.changes[0] for row in comparison.rows}


def test_a_faster_decode_is_none() -> None:
    comparison = compare_profiles([make_profile(decode_scale=1.3), make_profile()])
    assert comparison.regressions == ()
    assert next(row for row in comparison.rows if row.key == "decode.64").changes == ("same", "better")


def test_less_than_the_threshold_is_the_same() -> None:
    pair = [make_profile(), make_profile(decode_scale=1.3)]
    assert compare_profiles(pair, threshold=0.5).regressions == ()


def test_other_devices_have_no_regressions_but_ratios() -> None:
    slow = make_profile(name="old", decode_scale=2.0)
    slow = replace(slow, device=replace(slow.device, model="Another board"))
    comparison = compare_profiles([make_profile(), slow])
    assert not comparison.is_same_device and comparison.regressions == ()
    ratio = next(row for row in comparison.rows if row.key == "decode.64").ratio(1)
    assert ratio is not None and ratio < 0.7
    assert ("device", ("Example board, 4 cores", "Another board")) in comparison.differences


def test_a_figure_that_one_lacks_is_shown_and_not_judged() -> None:
    comparison = compare_profiles([make_profile(), make_profile(model=False), replace(make_profile(), storage=())])
    row = next(row for row in comparison.rows if row.key == "decode.64")
    assert row.values[1] is None and row.changes[1] == "unknown" and row.ratio(1) is None
    assert next(row for row in comparison.rows if row.key == "storage").changes[2] == "unknown"


def test_one_profile_is_not_enough() -> None:
    with pytest.raises(UsageError):
        compare_profiles([make_profile()])


@pytest.mark.parametrize(
    ("base", "value", "higher", "change"),
    [
        (spread(100), spread(90), True, "worse"),
        (spread(100), spread(90), False, "better"),
        (spread(100), spread(97), True, "same"),
        (spread(100, 0.3), spread(90, 0.3), True, "same"),  # the middle halves overlap
        (None, spread(90), True, "unknown"),
    ],
)
def test_changes(base: Measurement | None, value: Measurement | None, higher: bool, change: str) -> None:
    assert judge_change(base, value, higher, 0.05) == change


@given(measurements(), measurements(), st.booleans(), st.floats(0.001, 1))
def test_a_change_turns_round_with_its_direction(
    base: Measurement, value: Measurement, higher: bool, threshold: float
) -> None:
    change = judge_change(base, value, higher, threshold)
    opposite = judge_change(base, value, not higher, threshold)
    assert (change == "same") == (opposite == "same")
    assert {change, opposite} in ({"same"}, {"better", "worse"})
    assert judge_change(base, base, higher, threshold) == "same"


@settings(max_examples=40, deadline=None)
@given(st.lists(profiles(), min_size=2, max_size=3))
def test_any_documents_can_be_compared(documents: list[Profile]) -> None:
    comparison = compare_profiles(documents)
    for row in comparison.rows:
        assert len(row.values) == len(row.changes) == len(documents)
        assert row.changes[0] in ("same", "unknown")
