"""What a page says: sections of findings, facts, tables and charts. `edgeawq.reports.render` makes it one HTML file.

The charts are Vega-Lite specifications, which are data. What draws them is 0.9 MB of JavaScript that `vl-convert`
carries (Vega, Vega-Lite and vega-embed, written into the page); Bokeh would be 1.3 MB and Plotly 4.8 MB.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeawq.errors import MissingExtraError, UsageError
from edgeawq.reports.style import LABEL_PIXELS

Spec = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A figure that has become better or worse."""

    text: str
    kind: Literal["better", "worse"]


@dataclass(frozen=True)
class Table:
    """A table of plain texts. texts: the columns that stand on the left; the others are numbers, on the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    texts: Sequence[int] = (0,)
    marked: frozenset[int] = frozenset()  # rows set apart


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification with a heading and a sentence on how to read it; its figures fold away below it."""

    title: str
    text: str
    spec: Spec
    table: Table | None = None
    is_wide: bool = False  # takes the whole width among columns
    label_pixels: int = LABEL_PIXELS  # room for a name in its legend, for as many columns of names as fit


@dataclass(frozen=True)
class Finding:
    """A sentence with the figures behind it."""

    kind: Literal["warning", "hint", "good"]
    text: str
    evidence: str = ""


@dataclass(frozen=True)
class Findings:
    """What the figures mean, the most important first."""

    items: Sequence[Finding]


@dataclass(frozen=True)
class Facts:
    """Names and what stands for them."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Columns:
    """Two beside each other where the screen is wide enough."""

    parts: Sequence[Part]


@dataclass(frozen=True)
class Stack:
    """Below each other, as one of the columns."""

    parts: Sequence[Part]


Part = str | Table | Chart | Findings | Facts | Columns | Stack  # a text is a paragraph


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """Everything. Every text in it is text: what looks like markup is shown as it is."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    notes: Sequence[str] = ()


def check_page(path: Path) -> None:
    """Raise, before any work is done, where a page cannot be made or written."""
    if importlib.util.find_spec("vl_convert") is None:
        raise MissingExtraError("vl-convert-python", "host")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no such folder, or it is one", remedy="name a .html file")


def write_page(path: Path, page: Page) -> None:
    """Write a page, whole or not at all."""
    from edgeawq.reports.render import render_page

    check_page(path)
    content = render_page(page)
    try:
        handle, partial = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}", remedy="choose another file") from None
