"""The methods by name: which of the quantizer's stages each one runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """Which stages follow each other for every block."""

    folds_scales: bool = False  # AWQ's channel scales
    searches_ranges: bool = True  # False: every group keeps its full range
    rounds_by_columns: bool = False  # GPTQ
    learns_rounding: bool = False  # the whole block's error decides
    keeps_channels: bool = False  # some input channels stay in float16; for analysis only
    act_order: bool = False  # GPTQ's usual order of columns, where --act-order does not say

    @property
    def needs_text(self) -> bool:
        """Whether it looks at activations, not at weights alone."""
        return self.searches_ranges or self.keeps_channels


METHODS = {
    "rtn": Method(searches_ranges=False),
    "awq": Method(folds_scales=True),
    "gptq": Method(rounds_by_columns=True),
    "awq+gptq": Method(folds_scales=True, rounds_by_columns=True, act_order=True),
    "awq+round": Method(folds_scales=True, learns_rounding=True),
    "awq+gptq+round": Method(folds_scales=True, rounds_by_columns=True, learns_rounding=True, act_order=True),
    "mixed": Method(searches_ranges=False, keeps_channels=True),
}
