"""JSON objects of which nothing is believed that was not checked: kinds, bounds, and exactly the known keys."""

from __future__ import annotations

import re
from typing import Any

from edgeawq.errors import BundleError

_REMEDY = "pack the checkpoint again with `edgeawq pack`, or copy the bundle again"


class Fields:
    """One JSON object whose keys are exactly the ones that the format knows."""

    def __init__(self, value: object, where: str, keys: set[str]) -> None:
        if not isinstance(value, dict):
            raise refuse(f"the manifest's {where or 'content'} is not an object")
        if value.keys() != keys:
            unknown, missing = sorted(value.keys() - keys), sorted(keys - value.keys())
            wrong = f"unknown {ascii(unknown[0])[:60]}" if unknown else f"missing {missing[0]!r}"
            raise refuse(f"the manifest's {where or 'content'} has the wrong keys: {wrong}")
        self._value = value
        self._where = where

    def take(self, key: str) -> Any:
        return self._value[key]

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self._value[key]
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self._wrong(key, f"text that matches {pattern.pattern}")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self._value[key]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        value = self._value[key]
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(key, f"a number from {low} to {high}")
        return float(value)

    def boolean(self, key: str) -> bool:
        value = self._value[key]
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def items(self, key: str, limit: int) -> list[Any]:
        value = self._value[key]
        if not isinstance(value, list) or len(value) > limit:
            raise self._wrong(key, f"a list of at most {limit} entries")
        return value

    def texts(self, key: str, limit: int, pattern: re.Pattern[str]) -> tuple[str, ...]:
        values = self.items(key, limit)
        if not all(isinstance(value, str) and pattern.fullmatch(value) for value in values):
            raise self._wrong(key, f"a list of texts that match {pattern.pattern}")
        return tuple(values)

    def integers(self, key: str, low: int, limit: int) -> tuple[int, ...]:
        """Different whole numbers from `low` to `limit`, ascending."""
        values = self.items(key, limit)
        if not all(
            isinstance(value, int) and not isinstance(value, bool) and low <= value <= limit for value in values
        ):
            raise self._wrong(key, f"a list of integers from {low} to {limit}")
        if values != sorted(set(values)):
            raise self._wrong(key, "ascending")
        return tuple(values)

    def _wrong(self, key: str, wanted: str) -> BundleError:
        shown = ascii(self._value[key])
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return refuse(f"the manifest's {self._where + '.' if self._where else ''}{key} is {shown}, not {wanted}")


def refuse(what: str) -> BundleError:
    return BundleError(what, remedy=_REMEDY)
