"""Rotary position settings of config.json: `rope_parameters` (transformers 5) and `rope_theta` + `rope_scaling`."""

from __future__ import annotations

import math

from edgeawq.checkpoints.config import RopeScaling
from edgeawq.checkpoints.json_fields import JsonFields
from edgeawq.errors import UnsupportedModelError

DEFAULT_THETA = 10000.0
KINDS = ("linear", "dynamic", "llama3", "yarn")


def read_rope(fields: JsonFields, max_position_embeddings: int) -> tuple[float, RopeScaling | None]:
    """(rope_theta, scaling or None); raises UnsupportedModelError for a rule that is not known."""
    parameters = fields.child("rope_parameters")
    scaling = fields.child("rope_scaling")
    if any(isinstance(value, dict) for value in parameters.values.values()):
        raise UnsupportedModelError(
            f"{fields.where}: rope_parameters differ from layer to layer, which is not supported"
        )
    theta = parameters.read_float("rope_theta", fields.read_float("rope_theta", DEFAULT_THETA))
    # transformers lets an explicit rope_scaling win over rope_parameters.
    rule = scaling if scaling.values else parameters
    for source in (fields, rule):
        if source.read_float("partial_rotary_factor", 1.0) != 1.0:
            raise UnsupportedModelError(
                f"{fields.where}: only full rotation of a head is supported (partial_rotary_factor)"
            )
    kind = rule.values.get("rope_type", rule.values.get("type", "default"))
    if kind in ("default", None):
        return theta, None
    if kind not in KINDS:
        raise UnsupportedModelError(
            f"{fields.where}: the rotary scaling {kind!r} is not supported; known are {', '.join(KINDS)}",
            remedy="choose a model without it, such as Llama 3.2, Mistral, SmolLM2 or Qwen2.5",
        )
    return theta, read_scaling(str(kind), rule, max_position_embeddings)


def read_scaling(kind: str, rule: JsonFields, max_position_embeddings: int) -> RopeScaling:
    """One scaling rule; `max_position_embeddings` stands in where the original context is not named."""
    factor = rule.read_float("factor")
    if kind == "linear":
        return RopeScaling(kind, factor)
    original = rule.read_int("original_max_position_embeddings", max_position_embeddings)
    if kind == "dynamic":
        return RopeScaling(kind, factor, original_max_position_embeddings=original)
    if kind == "llama3":
        return RopeScaling(
            kind, factor, rule.read_float("low_freq_factor"), rule.read_float("high_freq_factor"), original
        )
    if rule.values.get("truncate", True) is not True:
        raise UnsupportedModelError(f"{rule.where}: yarn scaling with truncate = false is not supported")
    return RopeScaling(
        kind,
        factor,
        original_max_position_embeddings=original,
        attention_factor=read_attention_factor(rule, factor),
        beta_fast=rule.read_float("beta_fast", 32.0),
        beta_slow=rule.read_float("beta_slow", 1.0),
    )


def read_attention_factor(rule: JsonFields, factor: float) -> float:
    """YaRN's scale of the cosines and sines; 0 where it follows from `factor` alone."""
    given = rule.read_float("attention_factor", 0.0)
    mscale, mscale_all_dim = rule.read_float("mscale", 0.0), rule.read_float("mscale_all_dim", 0.0)
    if given or not (mscale and mscale_all_dim) or factor <= 1.0:
        return given
    return (0.1 * mscale * math.log(factor) + 1.0) / (0.1 * mscale_all_dim * math.log(factor) + 1.0)


def describe_scaling(scaling: RopeScaling | None) -> dict[str, object] | None:
    """The `rope_scaling` of a config.json."""
    if scaling is None:
        return None
    described: dict[str, object] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        described["original_max_position_embeddings"] = scaling.original_max_position_embeddings
    if scaling.kind == "llama3":
        described["low_freq_factor"] = scaling.low_freq_factor
        described["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind == "yarn":
        described["beta_fast"] = scaling.beta_fast
        described["beta_slow"] = scaling.beta_slow
        if scaling.attention_factor:
            described["attention_factor"] = scaling.attention_factor
    return described
