"""One self-contained HTML page: text, tables and Vega-Lite charts, no network, light and dark.

The charts are Vega-Lite specifications, which are data. What draws them is 0.9 MB of JavaScript that `vl-convert`
carries (Vega, Vega-Lite and vega-embed, written into the page); Bokeh would be 1.3 MB and Plotly 4.8 MB.
"""

from __future__ import annotations

import html
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from edgeawq.errors import MissingExtraError, UsageError

Spec = Mapping[str, object]

VEGA_LITE = "6.1"
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name, not an address that is fetched


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification with a heading and a sentence on how to read it."""

    title: str
    text: str
    spec: Spec
    is_wide: bool = False  # takes the page's whole width


@dataclass(frozen=True)
class Grid:
    """A table; the first column is text, the others are numbers as they shall be shown."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()  # rows set apart


@dataclass(frozen=True)
class Page:
    """What a page says."""

    title: str
    lead: Sequence[str]
    grids: Sequence[Grid]
    charts: Sequence[Chart]
    notes: Sequence[str] = ()


def check_page(path: Path) -> None:
    """Raise, before any work is done, where a page cannot be made or written."""
    if importlib.util.find_spec("vl_convert") is None:
        raise MissingExtraError("vl-convert-python", "report")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no such folder, or it is one", remedy="name a .html file")


def write_page(path: Path, page: Page) -> None:
    """Write a page, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(render_page(page))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error


def render_page(page: Page) -> str:
    """The page as HTML."""
    template = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    specs = {f"chart{number}": {"$schema": SCHEMA, **chart.spec} for number, chart in enumerate(page.charts)}
    return template.substitute(
        title=html.escape(page.title),
        lead="".join(f"<p>{html.escape(line)}</p>" for line in page.lead),
        grids="".join(map(render_grid, page.grids)),
        charts="".join(render_chart(f"chart{number}", chart) for number, chart in enumerate(page.charts)),
        notes="".join(f"<li>{html.escape(note)}</li>" for note in page.notes),
        # "<" inside strings would end the script; JSON may write it as an escape.
        specs=json.dumps(specs, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c"),
        bundle=load_bundle(),
    )


def render_grid(grid: Grid) -> str:
    """A table that scrolls sideways where the screen is narrow."""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in grid.columns)
    body = ""
    for number, row in enumerate(grid.rows):
        cells = f'<th scope="row">{html.escape(row[0])}</th>' + "".join(
            f"<td>{html.escape(cell)}</td>" for cell in row[1:]
        )
        body += f"<tr{' class=marked' if number in grid.marked else ''}>{cells}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def render_chart(identifier: str, chart: Chart) -> str:
    """A figure whose drawing comes later."""
    wide = " wide" if chart.is_wide else ""
    return (
        f'<figure class="chart{wide}"><h2>{html.escape(chart.title)}</h2><figcaption>{html.escape(chart.text)}'
        f'</figcaption><div class="plot" id="{identifier}" role="img" aria-label="{html.escape(chart.title)}"></div>'
        "</figure>"
    )


def load_bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script that sets `vegaEmbed`."""
    import vl_convert

    bundle = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE))
    return bundle.replace("</script", "<\\/script")


def check_spec(spec: Spec) -> None:
    """Raise ValueError for a specification that Vega-Lite does not compile; for tests."""
    import vl_convert

    vl_convert.vegalite_to_vega({"$schema": SCHEMA, **spec}, vl_version=VEGA_LITE)
