"""Reading JSON files of a bounded size."""

from __future__ import annotations

import json
from pathlib import Path

from edgeawq.checkpoints.limits import MAX_JSON_BYTES
from edgeawq.errors import CheckpointError


def read_text(path: Path) -> str:
    """The text of a file; raises CheckpointError where it cannot be read, is not UTF-8, or is too large."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {size:,} bytes; at most {MAX_JSON_BYTES:,} are read")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}", remedy="check the path and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text", remedy="copy or download the file again") from error


def read_json_object(path: Path) -> dict[str, object]:
    """A JSON object; raises CheckpointError naming the line where it is damaged."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path} is not JSON: {error.msg} in line {error.lineno} ({len(text.encode()):,} bytes)",
            remedy="copy or download the file again; it may be truncated",
        ) from error
    except RecursionError as error:
        raise CheckpointError(f"{path} is nested too deeply") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def read_optional_json_object(path: Path) -> dict[str, object]:
    """Like `read_json_object`; an empty one where the file does not exist."""
    return read_json_object(path) if path.exists() else {}
