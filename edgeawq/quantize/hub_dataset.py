"""Calibration text from a data set of the Hugging Face hub, where there is a network or the hub's own cache."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgeawq.errors import MissingExtraError, UsageError
from edgeawq.quantize.chat_text import RenderChat
from edgeawq.quantize.documents import read_entry

HUB_SCHEME = "hub:"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
REFERENCE = re.compile(rf"{HUB_SCHEME}(?P<name>{HUB_NAME.pattern})(?::(?P<subset>[\w.-]+))?(?::(?P<split>[\w.-]+))?")
DEFAULT_SPLIT = "train"


def read_hub_dataset(reference: str, render_chat: RenderChat | None) -> Iterator[str]:
    """Documents of `hub:OWNER/NAME[:SUBSET[:SPLIT]]`, row by row in its order; nothing is downloaded beyond need.

    Rows have a `text`, or chat `messages`. Raises UsageError for a reference that is none, or where the hub is out of
    reach; MissingExtraError without the package `datasets`.
    """
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError(
            f"{reference!r} does not name a data set of the hub",
            remedy="write hub:OWNER/NAME, hub:OWNER/NAME:SUBSET or hub:OWNER/NAME:SUBSET:SPLIT",
        )
    name, split = match["name"], match["split"] or DEFAULT_SPLIT
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtraError("datasets", "datasets") from error
    try:
        for number, row in enumerate(datasets.load_dataset(name, match["subset"], split=split, streaming=True), 1):
            yield read_entry(row, f"{reference} row {number}", render_chat)
    # The library raises these, and its own kinds of them, for names, networks and files alike.
    except (OSError, ValueError, RuntimeError) as error:
        first_line = str(error).partition("\n")[0]
        raise UsageError(
            f"the data set {name} cannot be read: {first_line}",
            remedy='without a network, on a machine that has one: python -c "from datasets import load_dataset; '
            f"load_dataset('{name}', split='{split}[:2000]').to_json('calib.jsonl')\" ; copy calib.jsonl here and "
            "give --calib calib.jsonl. Or leave --calib out: the model then writes its own text",
        ) from error
