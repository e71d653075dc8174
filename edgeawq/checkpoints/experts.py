"""The feed-forward parts of a layer by their names in a checkpoint: one, or the experts of a mixture and their router.

Families name the same things differently; everything else about a mixture of experts is the same graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeawq.checkpoints.config import Experts, ModelConfig
from edgeawq.checkpoints.json_fields import JsonFields
from edgeawq.errors import UnsupportedModelError


@dataclass(frozen=True)
class FeedForward:
    """One SwiGLU part: its modules inside a layer, and its width."""

    gate: str
    up: str
    down: str
    intermediate_size: int

    @property
    def name(self) -> str:
        """What the three have in common, such as "mlp.experts.3"."""
        return self.gate.rpartition(".")[0]


@dataclass(frozen=True)
class ExpertNames:
    """How a family names the modules of a mixture inside a layer, and the fields of config.json."""

    router: str  # [experts, hidden_size]
    experts: str  # followed by an expert's number
    parts: tuple[str, str, str]  # gate, up and down inside an expert
    count_field: str
    width_field: str
    shared: str = ""  # the expert that every token passes
    shared_router: str = ""  # [1, hidden_size]: how much it counts


EXPERT_NAMES = {
    "mixtral": ExpertNames(
        "block_sparse_moe.gate",
        "block_sparse_moe.experts",
        ("w1", "w3", "w2"),
        count_field="num_local_experts",
        width_field="intermediate_size",
    ),
    "qwen2_moe": ExpertNames(
        "mlp.gate",
        "mlp.experts",
        ("gate_proj", "up_proj", "down_proj"),
        count_field="num_experts",
        width_field="moe_intermediate_size",
        shared="mlp.shared_expert",
        shared_router="mlp.shared_expert_gate",
    ),
}
DENSE_PARTS = ("gate_proj", "up_proj", "down_proj")


def list_experts(config: ModelConfig) -> tuple[FeedForward, ...]:
    """The experts that a router chooses from, by their number; none in a dense model."""
    if config.experts is None:
        return ()
    names, width = EXPERT_NAMES[config.model_type], config.experts.intermediate_size
    return tuple(_name_parts(f"{names.experts}.{i}", names.parts, width) for i in range(config.experts.count))


def find_common_feed_forward(config: ModelConfig) -> FeedForward | None:
    """The part that every token passes: a dense model's only one, or a mixture's shared expert where it has one."""
    if config.experts is None:
        return _name_parts("mlp", DENSE_PARTS, config.intermediate_size)
    width = config.experts.shared_intermediate_size
    return _name_parts(EXPERT_NAMES[config.model_type].shared, DENSE_PARTS, width) if width else None


def list_feed_forwards(config: ModelConfig) -> tuple[FeedForward, ...]:
    """Every part of a layer: experts by their number, then the one that every token passes."""
    common = find_common_feed_forward(config)
    return (*list_experts(config), *((common,) if common is not None else ()))


def list_routers(config: ModelConfig) -> dict[str, int]:
    """Modules that decide where a token goes, and their outputs; they are small, and never quantized."""
    if config.experts is None:
        return {}
    names = EXPERT_NAMES[config.model_type]
    routers = {names.router: config.experts.count}
    return routers | ({names.shared_router: 1} if config.experts.shared_intermediate_size else {})


def read_experts(model_type: str, fields: JsonFields, where: str) -> Experts | None:
    """The mixture that a config.json describes; None for a dense family.

    Raises UnsupportedModelError where some layers have no experts.
    """
    names = EXPERT_NAMES.get(model_type)
    if names is None:
        return None
    if fields.read_int("decoder_sparse_step", 1) != 1 or fields.values.get("mlp_only_layers"):
        raise UnsupportedModelError(
            f"{where}: some layers of the model have experts and some have none, which is not supported",
            remedy="choose a mixture of experts whose layers are alike (Mixtral, Qwen1.5-MoE, Qwen2-57B-A14B)",
        )
    return Experts(
        count=fields.read_int(names.count_field),
        per_token=fields.read_int("num_experts_per_tok"),
        intermediate_size=fields.read_int(names.width_field),
        normalizes_weights=not names.shared or fields.read_bool("norm_topk_prob", False),
        shared_intermediate_size=fields.read_int("shared_expert_intermediate_size") if names.shared else 0,
    )


def describe_experts(config: ModelConfig) -> Mapping[str, object]:
    """The fields of config.json for a mixture; nothing for a dense model."""
    if config.experts is None:
        return {}
    names = EXPERT_NAMES[config.model_type]
    described: dict[str, object] = {
        names.count_field: config.experts.count,
        "num_experts_per_tok": config.experts.per_token,
        names.width_field: config.experts.intermediate_size,
    }
    if names.shared:
        described |= {
            "norm_topk_prob": config.experts.normalizes_weights,
            "shared_expert_intermediate_size": config.experts.shared_intermediate_size,
            "qkv_bias": config.attention_bias,
        }
    return described


def refuse_experts(config: ModelConfig, where: str) -> None:
    """Raise UnsupportedModelError for a mixture of experts, where only dense models can be run."""
    if config.experts is not None:
        raise UnsupportedModelError(
            f"{where} is a mixture of {config.experts.count} experts; it can be quantized and evaluated, but there is "
            "no kernel for it yet",
            remedy="pack a dense model of the Llama family",
        )


def _name_parts(prefix: str, parts: tuple[str, str, str], width: int) -> FeedForward:
    gate, up, down = (f"{prefix}.{part}" for part in parts)
    return FeedForward(gate, up, down, width)
