"""How the charts of all pages look: colours, fonts, legends. Texts and axes get the reader's light or dark from CSS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Distinct for eyes that see colours differently, and legible on white and on near-black.
COLORS = (
    "#2f7fe0", "#d9730d", "#1f9d57", "#b455d0", "#0f9aa8", "#d8443c", "#9a7a12", "#e06aa0", "#5b6ee1", "#7a8694",
    "#7fb800", "#a65e2e", "#c9a227",
)  # fmt: skip
GREY = "#7a8694"
LABEL_PIXELS = 215  # room for a name in a legend


def make_config() -> Mapping[str, Any]:
    """What every chart begins with, as Vega-Lite's `config`."""
    return {
        "background": "transparent",
        "view": {"stroke": None},
        "axis": {
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "labelOverlap": "greedy",
            "labelSeparation": 8,
        },
        "legend": {
            "labelFontSize": 12,
            "labelLimit": LABEL_PIXELS - 30,
            "orient": "bottom",
            "layout": {"bottom": {"direction": "vertical", "anchor": "start"}},
            "symbolStrokeWidth": 2,
        },
        "mark": {"color": COLORS[0]},
        "point": {"opacity": 1},
        "rule": {"color": GREY},
        "text": {"fontSize": 12},
        "range": {"category": list(COLORS)},
    }
