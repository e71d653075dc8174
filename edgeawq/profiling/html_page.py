"""One HTML page that needs nothing from anywhere: its style, its charts' JavaScript and its data are in it.

Charts are Vega-Lite specifications, plain dicts; the JavaScript comes from the package vl-convert-python. The page's
own policy forbids it every request. Light or dark follows the reader's system; on paper it is light.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeawq.errors import MissingExtraError

Spec = dict[str, Any]

POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"


@dataclass(frozen=True)
class HtmlTable:
    """A table of plain texts; numeric columns (by index) stand on the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[int] = ()


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite chart; height in pixels. table: the same figures, folded below it."""

    title: str
    spec: Spec
    note: str = ""
    table: HtmlTable | None = None


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it: trusted HTML made by this package, charts and tables."""

    title: str
    parts: Sequence[str | Chart | HtmlTable] = field(default_factory=tuple)


def make_html(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole page. Raises MissingExtraError where vl-convert-python is not installed."""
    charts: list[Spec] = []
    body = "\n".join(_make_section(section, charts) for section in sections)
    return _PAGE.format(
        policy=POLICY,
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        style=_STYLE,
        body=body,
        library=_load_library() if charts else "",
        charts=_script_json(charts),
        script=_SCRIPT,
    )


def escape(text: object) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def make_table(table: HtmlTable) -> str:
    """A table as HTML that scrolls sideways on a narrow screen."""

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if i in table.numeric else ''}>{escape(text)}</{tag}>"
            for i, text in enumerate(texts)
        )

    rows = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    head = f"<thead><tr>{cells('th', table.head)}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'


def _make_section(section: Section, charts: list[Spec]) -> str:
    parts = []
    for part in section.parts:
        if isinstance(part, Chart):
            parts.append(_make_chart(part, charts))
        else:
            parts.append(make_table(part) if isinstance(part, HtmlTable) else part)
    return f"<section><h2>{escape(section.title)}</h2>{''.join(parts)}</section>"


def _make_chart(chart: Chart, charts: list[Spec]) -> str:
    identifier = f"chart-{len(charts)}"
    charts.append(chart.spec)
    note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
    figures = "" if chart.table is None else f"<details><summary>Figures</summary>{make_table(chart.table)}</details>"
    return (
        f'<figure><figcaption>{escape(chart.title)}</figcaption>{note}<div class="chart" id="{identifier}"'
        f' role="img" aria-label="{html.escape(chart.title, quote=True)}"></div>{figures}</figure>'
    )


def _script_json(value: object) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, allow_nan=False, ensure_ascii=True).replace("<", "\\u003c")


def check_library() -> None:
    """Raise MissingExtraError where charts cannot be made: to be asked before anything that takes long."""
    try:
        import vl_convert  # noqa: F401 - only whether it is there
    except ModuleNotFoundError:
        raise MissingExtraError("vl_convert", "report") from None


def _load_library() -> str:
    check_library()
    import vl_convert

    bundle: Callable[..., str] = vl_convert.javascript_bundle  # its stub wants arguments that it does not need
    return bundle().replace("</script", "<\\/script")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><p>{subtitle}</p></header>
<noscript><p class="note">The charts need JavaScript; the tables do not.</p></noscript>
<main>
{body}
</main>
<script>{library}</script>
<script id="charts" type="application/json">{charts}</script>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """
:root { --back: #ffffff; --panel: #f6f7f9; --text: #1b1f24; --muted: #59636e; --line: #d5dae0; --accent: #0b62c4;
  --warning: #b42318; --hint: #8a5300; --good: #15703a; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --panel: #1d2127; --text: #e8ebef; --muted: #a3adb9;
  --line: #3a424c; --accent: #6cb0ff; --warning: #ff8a80; --hint: #f2bd5c; --good: #6fd396; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 3rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
header p, .note, .evidence { color: var(--muted); margin: .15rem 0 .5rem; font-size: .92rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 0 1.5rem; align-items: start; }
figure { margin: .6rem 0; padding: .8rem 1rem; background: var(--panel); border: 1px solid var(--line);
  border-radius: 8px; min-width: 0; break-inside: avoid; }
figcaption { font-weight: 600; }
.chart { width: 100%; min-height: 3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--muted); font-weight: 600; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .5rem 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
ul.verdicts { list-style: none; margin: 0; padding: 0; }
ul.verdicts li { border-left: 4px solid var(--line); padding: .35rem 0 .35rem .8rem; margin: .5rem 0;
  break-inside: avoid; }
ul.verdicts li.warning { border-color: var(--warning); } ul.verdicts li.hint { border-color: var(--hint); }
ul.verdicts li.good { border-color: var(--good); }
ul.verdicts b { text-transform: capitalize; } .warning b { color: var(--warning); } .hint b { color: var(--hint); }
.good b { color: var(--good); } .worse { color: var(--warning); font-weight: 600; } .better { color: var(--good); }
details summary { cursor: pointer; color: var(--accent); font-size: .92rem; margin-top: .4rem; }
.vega-embed { width: 100%; } .vega-embed .vega-bindings { font-size: .9rem; margin-top: .3rem; }
.vega-embed .vega-bind-name { color: var(--muted); margin-right: .5rem; display: inline-block; }
.vega-embed select { font: inherit; color: var(--text); background: var(--back); border: 1px solid var(--line);
  border-radius: 4px; padding: .1rem .3rem; }
.chart svg { background: transparent !important; max-width: 100%; }
.chart svg .mark-text text { fill: var(--text) !important; }
.chart svg .role-mark.mark-text text { paint-order: stroke; stroke: var(--panel); stroke-width: 4px;
  stroke-linejoin: round; }
.chart svg .role-axis-grid line { stroke: var(--line) !important; }
.chart svg .role-axis-domain line, .chart svg .role-axis-tick line { stroke: var(--muted) !important; }
#vg-tooltip-element.vg-tooltip { background: var(--back) !important; color: var(--text) !important;
  border: 1px solid var(--line) !important; font: 13px/1.4 system-ui, sans-serif !important; }
#vg-tooltip-element table tr td.key { color: var(--muted) !important; }
@media (max-width: 40rem) { body { font-size: 15px; padding: 1rem .7rem 2rem; } figure { padding: .6rem .5rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; } }
@media print { :root { --back: #fff; --panel: #fff; --text: #000; --muted: #444; --line: #bbb; --warning: #a00;
  --hint: #630; --good: #050; } body { max-width: none; padding: 0; font-size: 10pt; } h2 { break-after: avoid; }
  summary, .vega-bindings, details:not([open]) { display: none; } ul.verdicts li { margin: .25rem 0; padding-top: 0;
  padding-bottom: 0; } .columns { grid-template-columns: 1fr 1fr; } table { font-size: 8pt; }
  th { white-space: normal; } .note, .evidence { font-size: 9pt; }
  .chart svg { width: auto !important; height: auto !important; max-width: 100%; max-height: 100mm; } }
@page { margin: 15mm; }
"""

_SCRIPT = """
(async () => {
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const views = [];
  for (const [index, spec] of specs.entries()) {
    const node = document.getElementById("chart-" + index);
    try {
      const result = await vegaEmbed(node, spec, {renderer: "svg", actions: false});
      views.push(result.view);
    } catch (error) {
      node.textContent = "This chart could not be drawn: " + error;
      console.error(error);
    }
  }
  document.documentElement.dataset.ready = String(views.length);
})();
"""
