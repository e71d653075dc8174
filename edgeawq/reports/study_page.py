"""The page of `edgeawq study … --html`."""

from __future__ import annotations

import edgeawq
from edgeawq.quantize.study import Study, show_value
from edgeawq.reports.page import Chart, Page, Section, Spec, Table

HEIGHT = 340


def make_study_page(studies: list[Study]) -> Page:
    """Tables, and a chart for each study."""
    title = studies[0].title if len(studies) == 1 else f"Study: {studies[0].name}"
    return Page(
        title=title,
        lead=list(dict.fromkeys(study.setting for study in studies)),
        sections=[
            Section("Figures" if len(studies) == 1 else study.title, [make_table(study), make_chart(study)])
            for study in studies
        ],
        notes=[f"Made by edgeawq {edgeawq.__version__}."],
    )


def make_table(study: Study) -> Table:
    """The table as it is in the terminal."""
    rows = [[show_value(row.get(column.key), column.form) for column in study.columns] for row in study.rows]
    return Table([column.title for column in study.columns], rows)


def make_chart(study: Study) -> Chart:
    """Lines over a number, or bars side by side over words."""
    plot = study.plot
    titles = {column.key: column.title for column in study.columns}
    values = [row for row in study.rows if row.get(plot.x) is not None and row.get(plot.y) is not None]
    is_number = all(isinstance(row[plot.x], (int, float)) for row in values)
    heights = [float(str(row[plot.y])) for row in values]
    is_steep = bool(heights) and min(heights) > 0 and max(heights) > 4 * min(heights)
    y: dict[str, object] = {"field": plot.y, "type": "quantitative", "title": titles[plot.y], "axis": {"tickCount": 5}}
    if is_number:
        y["scale"] = {"type": "log"} if is_steep else {"zero": False}
    x: dict[str, object] = {"field": plot.x, "title": titles[plot.x]}
    x |= {"type": "quantitative"} if is_number else {"type": "nominal", "sort": None, "axis": {"labelAngle": 0}}
    if is_number:
        x["scale"] = {"type": "log", "nice": False} if plot.is_x_log else {"zero": False}
        if plot.is_x_log:
            x["axis"] = {"values": sorted({float(str(row[plot.x])) for row in values}), "format": "~s"}
    encoding: dict[str, object] = {
        "x": x,
        "y": y,
        "color": {"field": plot.series, "type": "nominal", "title": None, "sort": None},
        "tooltip": [{"field": column.key, "title": column.title} for column in study.columns],
    }
    if not is_number:
        encoding["xOffset"] = {"field": plot.series, "sort": None}
    mark: Spec = {"type": "line", "point": {"size": 60}, "strokeWidth": 2} if is_number else {"type": "bar"}
    layers: list[Spec] = [{"data": {"values": values}, "mark": mark, "encoding": encoding}]
    if study.baseline is not None and is_number:
        line = {plot.y: study.baseline, "label": f"float: {study.baseline:.3f}"}
        base = {"data": {"values": [line]}}
        height = {"field": plot.y, "type": "quantitative"}
        layers += [
            {**base, "mark": {"type": "rule", "strokeDash": [5, 4]}, "encoding": {"y": height}},
            {
                **base,
                "mark": {"type": "text", "align": "left", "baseline": "bottom", "dx": 4, "dy": -4},
                "encoding": {"x": {"value": 0}, "y": height, "text": {"field": "label"}},
            },
        ]
    return Chart(
        f"{titles[plot.y].capitalize()} against {titles[plot.x]}",
        "",
        {"width": "container", "height": HEIGHT, "layer": layers},
    )
