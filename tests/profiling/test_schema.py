"""The measured profile as a document: what is written is read back equal, and nothing unsound is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeawq.errors import ProfileError
from edgeawq.profiling.schema import Measurement, Profile, dump_profile, parse_profile
from tests.profiling.profiles import profiles

SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each object, list and value of a document lies."""
    found = [path]
    if isinstance(value, dict):
        for key, item in value.items():
            found += paths_of(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += paths_of(item, (*path, index))
    return found


def look_up(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


@SETTINGS
@given(profiles())
def test_what_is_written_is_read_back_equal(profile: Profile) -> None:
    assert parse_profile(dump_profile(profile)) == profile


@SETTINGS
@given(profiles(), st.data())
def test_a_missing_or_unknown_key_is_refused(profile: Profile, data: st.DataObject) -> None:
    document = json.loads(dump_profile(profile))
    objects = [path for path in paths_of(document) if isinstance(look_up(document, path), dict)]
    place = look_up(document, data.draw(st.sampled_from(objects)))
    if data.draw(st.booleans()):
        place["surprise"] = 1
    else:
        del place[data.draw(st.sampled_from(sorted(place)))]
    with pytest.raises(ProfileError):
        parse_profile(json.dumps(document).encode())


@SETTINGS
@given(profiles(), st.data(), st.sampled_from([-1, 1e22, "1", True, [], {}, "a\nb", "x" * 2001]))
def test_a_number_of_another_kind_or_out_of_bounds_is_refused(profile: Profile, data: st.DataObject, bad: Any) -> None:
    document = json.loads(dump_profile(profile))
    places = [path for path in paths_of(document) if path and path[-1] in ("seconds", "bytes", "threads", "median")]
    path = data.draw(st.sampled_from(places))
    look_up(document, path[:-1])[path[-1]] = bad
    with pytest.raises(ProfileError):
        parse_profile(json.dumps(document).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"format": "other"}',
        b'{"format": "edgeawq-profile", "format_version": 2}',
        b'{"format": "edgeawq-profile", "format_version": true}',
        b'{"format": "edgeawq-profile", "format": "edgeawq-profile"}',
        b'{"format": "edgeawq-profile", "format_version": NaN}',
        b"[" * 100_000,
        b" " * ((16 << 20) + 1),
    ],
)
def test_other_documents_are_refused(data: bytes) -> None:
    with pytest.raises(ProfileError) as caught:
        parse_profile(data)
    assert caught.value.remedy


@given(st.lists(st.floats(0, 1e9), min_size=5, max_size=5))
def test_a_measurement_is_in_order(five: list[float]) -> None:
    low, first, middle, third, high = five
    if five == sorted(five):
        assert Measurement(middle, low, first, third, high, 1).spread >= 0
    else:
        with pytest.raises(ValueError, match="order"):
            Measurement(middle, low, first, third, high, 1)


@SETTINGS
@given(profiles())
def test_the_document_has_no_value_without_its_unit(profile: Profile) -> None:
    """Every float's name says what it is counted in, so that no reader has to guess."""
    units = ("second", "seconds", "hertz", "celsius", "share", "joules", "watts", "joule", "average", "page", "roof")
    units += ("cycle", "byte", "step", "calls")
    plain = {"median", "minimum", "lower_quartile", "upper_quartile", "maximum"}
    document = json.loads(dump_profile(profile))
    for path in paths_of(document):
        value = look_up(document, path)
        if isinstance(value, float) and path[-1] not in plain:
            assert str(path[-1]).rsplit("_", 1)[-1] in units, path
