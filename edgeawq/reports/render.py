"""A page as one HTML file that needs nothing from anywhere: its style, its charts' JavaScript and its data are in it.

The page's own policy forbids it every request. Light or dark follows the reader's system; on paper it is light.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from string import Template

from edgeawq.reports.page import Cell, Chart, Columns, Facts, Finding, Findings, Page, Part, Section, Spec, Table
from edgeawq.reports.style import make_config

VEGA_LITE = "6.1"
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name, not an address that is fetched
AUTOSIZE = {"type": "fit-x", "contains": "padding"}
Specs = dict[str, Spec]


def render_page(page: Page) -> str:
    """The page as HTML."""
    template = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    specs: Specs = {}
    return template.substitute(
        title=_escape(page.title),
        lead="".join(f"<p>{_escape(line)}</p>" for line in page.lead),
        sections="\n".join(_render_section(section, specs) for section in page.sections),
        notes=f"<footer><ul>{_list_items(page.notes)}</ul></footer>" if page.notes else "",
        specs=_script_json(specs),
        config=_script_json(make_config()),
        bundle=load_bundle() if specs else "",
    )


@cache
def load_bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script that sets `vegaEmbed`; putting them together takes a second."""
    import vl_convert

    bundle: Callable[..., str] = vl_convert.javascript_bundle  # its stub wants arguments that it does not need
    return bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE).replace("</script", "<\\/script")


def check_spec(spec: Spec) -> None:
    """Raise ValueError for a specification that Vega-Lite does not compile; for tests."""
    import vl_convert

    vl_convert.vegalite_to_vega({"$schema": SCHEMA, "config": make_config(), **spec}, vl_version=VEGA_LITE)


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _list_items(texts: Sequence[str]) -> str:
    return "".join(f"<li>{_escape(text)}</li>" for text in texts)


def _render_section(section: Section, specs: Specs) -> str:
    return f"<section><h2>{_escape(section.title)}</h2>{_render_parts(section.parts, specs)}</section>"


def _render_parts(parts: Sequence[Part], specs: Specs) -> str:
    return "".join(_render_part(part, specs) for part in parts)


def _render_part(part: Part, specs: Specs) -> str:
    if isinstance(part, str):
        return f"<p>{_escape(part)}</p>"
    if isinstance(part, Table):
        return _render_table(part)
    if isinstance(part, Chart):
        return _render_chart(part, specs)
    if isinstance(part, Findings):
        return f'<ul class="findings">{"".join(map(_render_finding, part.items))}</ul>'
    if isinstance(part, Facts):
        pairs = "".join(f"<dt>{_escape(name)}</dt><dd>{_escape(text)}</dd>" for name, text in part.pairs)
        return f"<dl>{pairs}</dl>"
    name = "columns" if isinstance(part, Columns) else "stack"
    return f'<div class="{name}">{_render_parts(part.parts, specs)}</div>'


def _render_finding(finding: Finding) -> str:
    evidence = f"<p>{_escape(finding.evidence)}</p>" if finding.evidence else ""
    return f'<li class="{finding.kind}"><b>{finding.kind}</b> {_escape(finding.text)}{evidence}</li>'


def _render_table(table: Table) -> str:
    """A table that scrolls sideways where the screen is narrow."""
    places = ["" if index in table.texts else "number" for index in range(len(table.columns))]
    head = "".join(
        f"<th scope=col{_classes(place)}>{_escape(column)}</th>"
        for column, place in zip(table.columns, places, strict=True)
    )
    body = ""
    for number, row in enumerate(table.rows):
        cells = ""
        for index, (cell, place) in enumerate(zip(row, places, strict=True)):
            text, kind = (cell.text, cell.kind) if isinstance(cell, Cell) else (cell, "")
            tag, scope = ("td", "") if index else ("th", " scope=row")
            cells += f"<{tag}{scope}{_classes(place, kind)}>{_escape(text)}</{tag}>"
        body += f"<tr{_classes('marked' if number in table.marked else '')}>{cells}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _classes(*names: str) -> str:
    given = " ".join(name for name in names if name)
    return f' class="{given}"' if given else ""


def _render_chart(chart: Chart, specs: Specs) -> str:
    """A figure whose drawing comes later."""
    identifier = f"chart-{len(specs)}"
    specs[identifier] = {"$schema": SCHEMA, "description": chart.title, "autosize": AUTOSIZE, **chart.spec}
    text = f"<figcaption>{_escape(chart.text)}</figcaption>" if chart.text else ""
    figures = (
        "" if chart.table is None else f"<details><summary>Figures</summary>{_render_table(chart.table)}</details>"
    )
    return (
        f"<figure{_classes('wide' if chart.is_wide else '')}><h3>{_escape(chart.title)}</h3>{text}"
        f'<div class="plot" id="{identifier}" data-label="{chart.label_pixels}"></div>{figures}</figure>'
    )


def _script_json(value: Mapping[str, object]) -> str:
    """JSON that may stand inside a script element: "<" inside strings would end it, and may be written as an escape."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
