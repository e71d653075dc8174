"""Frozen dataclasses to JSON and back: every value's type and bounds are checked, whoever wrote the document.

A field's type says what is allowed: bool, int, float, str, Literal, X | None, tuple[X, ...] or another dataclass.
Numbers are finite and not negative unless the type says otherwise: Annotated[float, Range(-1, 1)].
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Hashable
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgeawq.errors import ProfileError

Document = TypeVar("Document")

MAX_BYTES = 16 << 20
MAX_TEXT = 2000  # characters
MAX_ITEMS = 4096
MAX_NUMBER = 1e21
REMEDY = "measure again with `edgeawq profile`; docs/design/0005-roofline.md describes the file"


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, both allowed: Annotated[int, Range(1, 8)]."""

    low: float = 0
    high: float = MAX_NUMBER


def to_json(value: Any) -> Any:
    """Plain data of a dataclass: objects, lists, numbers, texts, true, false and null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [to_json(item) for item in value] if isinstance(value, tuple) else value


def parse_text(data: bytes, where: str) -> Any:
    """JSON of at most MAX_BYTES, without keys given twice, NaN or infinity; ProfileError otherwise."""
    if len(data) > MAX_BYTES:
        raise ProfileError(f"{where} has more than {MAX_BYTES} bytes", remedy=REMEDY)
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{where} is not valid JSON: {str(error)[:200]}", remedy=REMEDY) from None


def from_json(kind: type[Document], value: Any, where: str) -> Document:
    """A `kind` from plain data; ProfileError names the first value that is missing, unknown, wrong or out of bounds."""
    if not isinstance(value, dict):
        raise _refuse(where, "not an object")
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if value.keys() != fields:
        unknown, missing = sorted(map(str, value.keys() - fields)), sorted(fields - value.keys())
        raise _refuse(where, f"unknown key {ascii(unknown[0])[:60]}" if unknown else f"{missing[0]!r} is missing")
    hints = _hints(kind)  # type: ignore[arg-type,unused-ignore]
    try:
        return kind(
            **{name: _read(hints[name], value[name], f"{where}.{name}" if where else name, Range()) for name in fields}
        )
    except ValueError as error:  # what a dataclass checks of its fields together
        raise _refuse(where, str(error)) from None


@lru_cache(maxsize=64)
def _hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _read(hint: Any, value: Any, where: str, bounds: Range) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _read(arguments[0], value, where, arguments[1])
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _read(next(kind for kind in arguments if kind is not type(None)), value, where, bounds)
    if origin is tuple:
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise _refuse(where, f"not a list of at most {MAX_ITEMS} entries")
        return tuple(_read(arguments[0], item, f"{where}[{index}]", bounds) for index, item in enumerate(value))
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise _refuse(where, f"{ascii(value)[:60]}, not one of {', '.join(map(str, arguments))}")
        return value
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    if hint is bool:
        if not isinstance(value, bool):
            raise _refuse(where, "neither true nor false")
        return value
    if hint is str:
        if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
            raise _refuse(where, f"not a line of at most {MAX_TEXT} printable characters")
        return value
    return _read_number(hint, value, where, bounds)


def _read_number(hint: Any, value: Any, where: str, bounds: Range) -> Any:
    low, high = bounds.low, bounds.high
    allowed = (int,) if hint is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed) or not low <= value <= high:
        kind = "a whole number" if hint is int else "a number"
        raise _refuse(where, f"{ascii(value)[:60]}, not {kind} from {low:g} to {high:g}")
    if not math.isfinite(value):
        raise _refuse(where, f"{value}, not a finite number")
    return value if hint is int else float(value)


def _refuse(where: str, what: str) -> ProfileError:
    return ProfileError(f"the measured profile cannot be read: {where or 'content'} is {what}", remedy=REMEDY)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
