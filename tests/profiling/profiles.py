"""Measured profiles for tests: any that the schema allows, made from its types."""

from __future__ import annotations

import dataclasses
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from edgeawq.profiling.json_values import Range
from edgeawq.profiling.schema import FORMAT_VERSION, Measurement, Profile

_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=12)


def measurements() -> st.SearchStrategy[Measurement]:
    """Five numbers in ascending order."""
    numbers = st.lists(st.floats(0, 1e12), min_size=5, max_size=5).map(sorted)
    return st.builds(
        lambda five, count: Measurement(five[2], five[0], five[1], five[3], five[4], count),
        numbers,
        st.integers(1, 1000),
    )


def profiles() -> st.SearchStrategy[Profile]:
    """Whole documents."""
    return documents(Profile, format_version=st.just(FORMAT_VERSION))


def documents(kind: Any, **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values of a dataclass of the schema."""
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]
    return st.builds(
        kind, **{name: given[name] if name in given else values_of(hints[name], Range()) for name in names}
    )


def values_of(hint: Any, bounds: Range) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return values_of(arguments[0], arguments[1])
    if origin in (Union, types.UnionType):
        return st.none() | values_of(arguments[0], bounds)
    if origin is tuple:
        return st.lists(values_of(arguments[0], bounds), max_size=2).map(tuple)
    if origin is Literal:
        return st.sampled_from(arguments)
    if hint is Measurement:
        return measurements()
    if dataclasses.is_dataclass(hint):
        return documents(hint)
    if hint is bool:
        return st.booleans()
    if hint is str:
        return _TEXT
    if hint is int:
        return st.integers(int(bounds.low), int(bounds.high))
    return st.floats(bounds.low, bounds.high)
