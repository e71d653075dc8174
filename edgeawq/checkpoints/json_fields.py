"""Typed access to the fields of a JSON object; a wrong type is the user's file's fault and says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgeawq.errors import CheckpointError


@dataclass(frozen=True)
class JsonFields:
    """A JSON object and the words for it in messages. A null counts as absent."""

    values: Mapping[str, object]
    where: str

    def child(self, key: str) -> JsonFields:
        """The object at `key`, empty where it is absent."""
        value = self.values.get(key)
        if value is None:
            return JsonFields({}, f"{self.where}: {key}")
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return JsonFields(value, f"{self.where}: {key}")

    def read_int(self, key: str, default: int | None = None) -> int:
        """A whole number; without a default it must be there."""
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "a whole number")
        return value

    def read_float(self, key: str, default: float | None = None) -> float:
        """A finite number; without a default it must be there."""
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.wrong(key, "a number")
        return float(value)

    def read_bool(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def read_ids(self, key: str) -> tuple[int, ...]:
        """A token id or a list of them; empty where it is absent."""
        value = self.values.get(key)
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
            raise self.wrong(key, "a token id or a list of them")
        return tuple(ids)

    def wrong(self, key: str, wanted: str) -> CheckpointError:
        """The error for a field of the wrong type."""
        found = repr(self.values[key])[:80] if key in self.values else "missing"
        return CheckpointError(
            f"{self.where}: {key} is {found}; {wanted} is needed",
            remedy="config.json is damaged or of another kind of model; get the checkpoint again",
        )
