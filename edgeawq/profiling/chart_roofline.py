"""The interactive roofline as a Vega-Lite specification."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgeawq.profiling.chart_parts import LINEARS, base, log_scale, operation_color, quantity
from edgeawq.profiling.report_plot import NEGLIGIBLE
from edgeawq.profiling.schema import LinearFacts, OperationPoint, Profile
from edgeawq.profiling.verdict_parts import find_phase
from edgeawq.reports.page import Spec
from edgeawq.reports.style import GREY

MEASURED, FLOAT16, PRESENT = "measured", "float16, at the roof", "as stored, at the roof"
STAGES = ("decode", "prefill", "both")
Rows = list[dict[str, Any]]


def make_roofline(profile: Profile) -> Spec | None:
    """Roofs by memory level and kind of arithmetic, one point for each operation; None without roofs.

    Hollow points at the roof: the same matrix in float16 and at its present bits, as the AWQ paper draws it.
    """
    memory = [(r.name, r.bytes_per_second) for r in profile.roofs if r.kind == "memory" and r.bytes_per_second]
    compute = [(r.name, r.ops_per_second) for r in profile.roofs if r.kind == "compute" and r.ops_per_second]
    if not memory or not compute:
        return None
    points = list_points(profile)
    peak, slowest = max(rate for _, rate in compute), min(rate for _, rate in memory)
    low = min([p["x"] for p in points] + [0.5]) * 0.6
    high = max([p["x"] for p in points] + [peak / slowest]) * 4
    bottom = min([p["y"] for p in points] + [low * slowest * 2]) * 0.6
    top = max([p["y"] for p in points] + [peak]) * 2.5
    roofs, labels = list_roofs(memory, compute, low, high, bottom)
    layers = [_draw_roofs(roofs, (low, high), (bottom, top)), _draw_labels(labels)]
    if not points:  # a legend of nothing has no size, and neither has the chart then
        return {**base(430), "layer": layers}
    stages = {"input": "select", "options": list(STAGES), "name": "Operations of"}
    layers += [_draw_rules(points), *(_draw_points(points, is_measured=kind) for kind in (False, True))]
    return {**base(430), "params": [{"name": "stage", "value": "decode", "bind": stages}], "layer": layers}


def list_points(profile: Profile) -> Rows:
    """Measured operations of both phases, and matrices at the roof in float16 and as stored."""
    model = profile.model
    points: Rows = []
    for name in ("decode", "prefill"):
        phase = find_phase(model, name)
        for op in () if phase is None else phase.operations:
            if op.ops_per_byte and op.ops_per_second and op.share_of_step >= NEGLIGIBLE:
                points.append(_point(op, name, MEASURED, op.ops_per_byte, op.ops_per_second))
    phase, roof = find_phase(model, "decode"), profile.roof("memory", "DRAM")
    if model is None or phase is None or roof is None or not roof.bytes_per_second:
        return points
    facts: dict[str, LinearFacts] = {linear.kind: linear for linear in model.linears}
    for op in phase.operations:
        linear = facts.get(op.kind) or (facts.get("embedding") if op.kind == "head" else None)
        if op.kind not in LINEARS or linear is None or not op.operations or not op.bytes:
            continue
        for form, nbytes in ((FLOAT16, count_float16_bytes(op, linear)), (PRESENT, op.bytes)):
            intensity = op.operations / nbytes
            rate = min(intensity * roof.bytes_per_second, _compute_roof(profile, op))
            points.append(_point(op, "decode", form, intensity, rate))
    return points


def count_float16_bytes(op: OperationPoint, linear: LinearFacts) -> int:
    """What a token would move for the same matrix in float16: its weights at two bytes, activations as they are."""
    return 2 * linear.weights + max(0, op.bytes - linear.bytes)


def list_roofs(
    memory: Sequence[tuple[str, float]], compute: Sequence[tuple[str, float]], low: float, high: float, bottom: float
) -> tuple[Rows, Rows]:
    """Both ends of every roof, and where its name stands."""
    peak, fastest = max(rate for _, rate in compute), max(rate for _, rate in memory)
    ends: Rows = []
    labels: Rows = []
    for name, rate in memory:
        start, end = max(low, bottom / rate), max(low, min(high, peak / rate))
        text = f"{name} {rate / 1e9:.3g} GB/s"
        ends += [{"roof": name, "kind": "memory", "x": x, "y": x * rate, "limit": text} for x in (start, end)]
        labels.append({"x": 1.6 * start, "y": 1.6 * start * rate, "label": text, "side": "left"})
    for name, rate in compute:
        text = f"{name} {rate / 1e9:.3g} Gop/s"
        start = min(high, max(low, rate / fastest))
        ends += [{"roof": name, "kind": "compute", "x": x, "y": rate, "limit": text} for x in (start, high)]
        labels.append({"x": high, "y": rate, "label": text, "side": "right"})
    return ends, _spread_labels(labels)


def _spread_labels(labels: Rows) -> Rows:
    """Compute roofs that lie close together get their names above and below the line."""
    right = sorted((label for label in labels if label["side"] == "right"), key=lambda label: label["y"])
    for lower, upper in zip(right, right[1:], strict=False):
        if upper["y"] < 1.5 * lower["y"] and lower.get("place") != "below":
            lower["place"] = "below"
    return [{"place": "above", **label} for label in labels]


def _draw_roofs(roofs: Rows, x: tuple[float, float], y: tuple[float, float]) -> Spec:
    dash = {"field": "kind", "scale": {"domain": ["memory", "compute"], "range": [[1, 0], [6, 4]]}, "legend": None}
    return {
        "data": {"values": roofs},
        "mark": {"type": "line", "clip": True, "strokeWidth": 1.6, "color": GREY},
        "encoding": {
            "x": log_scale("x", "operations per byte", *x),
            "y": log_scale("y", "operations per second", *y),
            "detail": {"field": "roof"},
            "strokeDash": dash,
            "tooltip": [{"field": "limit", "title": "roof"}],
        },
    }


def _draw_labels(labels: Rows) -> Spec:
    texts: list[Spec] = []
    for side, place in (("left", "above"), ("right", "above"), ("right", "below")):
        mark = {
            "type": "text",
            "align": side,
            # Beside a slanted line there is room below it on its right.
            "baseline": "top" if side == "left" or place == "below" else "bottom",
            "dx": 5 if side == "left" else -4,
            "dy": 2 if side == "left" else -4 if place == "above" else 5,
            "fontSize": 11,
        }
        texts.append({"transform": [{"filter": f"datum.side == '{side}' && datum.place == '{place}'"}], "mark": mark})
    encoding = {"x": quantity("x"), "y": quantity("y"), "text": {"field": "label"}}
    return {"data": {"values": labels}, "encoding": encoding, "layer": texts}


def _draw_rules(points: Rows) -> Spec:
    """From each matrix in float16 to the same at its present bits, along the roof."""
    at = {(p["operation"], p["form"]): p for p in points if p["phase"] == "decode"}
    rules = [
        {"operation": name, "x": p["x"], "y": p["y"], "x2": end["x"], "y2": end["y"]}
        for (name, form), p in at.items()
        if form == FLOAT16 and (end := at.get((name, PRESENT))) is not None
    ]
    return {
        "data": {"values": rules},
        "transform": [{"filter": "stage != 'prefill'"}],
        "mark": {"type": "rule", "strokeDash": [2, 3], "strokeWidth": 1.5, "clip": True},
        "encoding": {
            "x": quantity("x"),
            "y": quantity("y"),
            "x2": {"field": "x2"},
            "y2": {"field": "y2"},
            "color": operation_color(points),
        },
    }


def _draw_points(points: Rows, *, is_measured: bool) -> Spec:
    test = "==" if is_measured else "!="
    names = [("operation", ""), ("phase", ""), ("form", ""), ("rate", "reached"), ("traffic", "bandwidth")]
    names += [("share", "of its roof"), ("bound", "bound by")] if is_measured else []
    tooltip: list[Spec] = [{"field": name, **({"title": title} if title else {})} for name, title in names]
    shapes = {"domain": [MEASURED, FLOAT16, PRESENT], "range": ["circle", "triangle-down", "square"]}
    shape_legend = {"title": None, "columns": 1, "symbolStrokeColor": GREY}
    return {
        "name": "measured" if is_measured else "at_the_roof",
        "data": {"values": points},
        "transform": [{"filter": f"(stage == 'both' || datum.phase == stage) && datum.form {test} '{MEASURED}'"}],
        "mark": {"type": "point", "filled": is_measured, "size": 130 if is_measured else 60, "strokeWidth": 2},
        "encoding": {
            "x": quantity("x"),
            "y": quantity("y"),
            "color": operation_color(points),
            "shape": {"field": "form", "scale": shapes, "legend": shape_legend},
            "tooltip": [*tooltip, {"field": "x", "title": "op/byte", "format": ".3"}],
        },
    }


def _point(op: OperationPoint, phase: str, form: str, x: float, y: float) -> dict[str, Any]:
    is_measured = form == MEASURED
    return {
        "operation": op.kind,
        "phase": phase,
        "form": form,
        "x": x,
        "y": y,
        "rate": f"{y / 1e9:.3g} Gop/s",
        "traffic": f"{y / x / 1e9:.3g} GB/s",
        "share": f"{100 * op.share_of_roof:.0f} %" if is_measured and op.share_of_roof is not None else "",
        "bound": (op.bound_by or "") if is_measured else "",
    }


def _compute_roof(profile: Profile, op: OperationPoint) -> float:
    roof = profile.roof("compute", op.compute_roof or "")
    return math.inf if roof is None or not roof.ops_per_second else roof.ops_per_second
