"""Pieces of Vega-Lite specifications that the charts of models share."""

from __future__ import annotations

from collections.abc import Sequence

from edgeawq.reports.page import Spec

HEIGHT = 280
NAME_PIXELS = 95  # room for a layer's name in a legend
# The smallest share that a logarithmic axis has to show.
FLOOR = 1e-9

Points = list[dict[str, object]]


def make_colour(field: str = "model", *, lines: bool = False, **more: object) -> Spec:
    """A colour for every value of a field, in the order of the data."""
    legend = {"symbolType": "stroke"} if lines else {}
    return {"field": field, "type": "nominal", "title": None, "sort": None, "legend": legend, **more}


def make_block_axis() -> Spec:
    """The blocks of a model from left to right."""
    return {
        "field": "block",
        "type": "quantitative",
        "title": "block",
        "scale": {"nice": False},
        "axis": {"tickMinStep": 1, "format": "d"},
    }


def make_log_axis(field: str, title: str, **axis: object) -> Spec:
    """A logarithmic axis with few marks."""
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log"},
        "axis": {"tickCount": 5, **axis},
    }


def make_bits_axis(points: Points) -> Spec:
    """Bits per weight from left to right, with room beside the outermost points."""
    bits = [float(str(point["bits"])) for point in points]
    return {
        "field": "bits",
        "type": "quantitative",
        "title": "bits per weight",
        # A domain of its own: from a single point Vega would make an axis with one mark, in the wrong place.
        "scale": {"domain": [round(min(bits) - 0.5, 1), round(max(bits) + 0.5, 1)], "nice": False},
        "axis": {"tickCount": 6, "format": ".3~f"},
    }


def make_chart(points: Points, mark: Spec, encoding: Spec, *, height: int = HEIGHT, **more: object) -> Spec:
    """A specification as wide as the page gives it."""
    return {
        "width": "container",
        "height": height,
        "data": {"values": points},
        "mark": mark,
        "encoding": encoding,
        **more,
    }


def make_line_mark(width: float = 2.0, point: int = 26) -> Spec:
    """Lines with a point at every value."""
    return {"type": "line", "point": {"size": point}, "strokeWidth": width}


def list_tooltip(fields: Sequence[str], **titled: tuple[str, str]) -> list[Spec]:
    """What hovering shows: fields as they are, then fields as (title, format)."""
    plain: list[Spec] = [{"field": field} for field in fields]
    return plain + [{"field": field, "title": title, "format": form} for field, (title, form) in titled.items()]
