"""Which linear layers of a model family share an input scale, and where that scale is folded: data, not code."""

from __future__ import annotations

from dataclasses import dataclass

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.experts import FeedForward, list_feed_forwards, list_routers
from edgeawq.errors import UnsupportedModelError


@dataclass(frozen=True)
class ScalePair:
    """Linear layers that read one activation, and the operation before it that takes up the inverse scale."""

    name: str  # of the activation, for reports
    previous: str  # module inside the block whose output is divided
    previous_is_norm: bool  # True: its weight vector; False: the rows of its matrix
    linears: tuple[str, ...]  # modules inside the block whose input columns are multiplied
    per_kv_head: bool = False  # the previous rows serve several query heads (GQA): one scale for all of them
    # Layers for which a token matters about as much, so that one Gram matrix does for them; others have their own.
    alike: tuple[tuple[str, ...], ...] = ()
    # What reads the activation too, in float: left as it is, a router would send tokens elsewhere.
    routers: tuple[str, ...] = ()

    @property
    def reader(self) -> str:
        """A module that sees the whole activation; an expert sees only the tokens that are sent to it."""
        return self.routers[0] if self.routers else self.linears[0]

    @property
    def gram_sets(self) -> tuple[tuple[str, ...], ...]:
        """The linear layers, those that share a Gram matrix together."""
        return self.alike or tuple((module,) for module in self.linears)


ATTENTION_PAIRS = (
    ScalePair("qkv", "input_layernorm", True, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ScalePair("o", "self_attn.v_proj", False, ("self_attn.o_proj",), per_kv_head=True),
)
# The same graph up to biases, constants and experts.
FAMILIES = ("llama", "mistral", "qwen2", "mixtral", "qwen2_moe")


def find_recipe(config: ModelConfig) -> tuple[ScalePair, ...]:
    """The scale pairs of a model; raises UnsupportedModelError for a family that is not known."""
    if config.model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model type {config.model_type!r} cannot be quantized (known: {', '.join(FAMILIES)})",
            remedy="use a model of the Llama family",
        )
    return (*ATTENTION_PAIRS, *make_feed_forward_pairs(list_feed_forwards(config), tuple(list_routers(config))))


def make_feed_forward_pairs(parts: tuple[FeedForward, ...], routers: tuple[str, ...] = ()) -> tuple[ScalePair, ...]:
    """The pairs of a layer's feed-forward parts: all read one norm, and each has its own second half."""
    first_half = tuple((part.gate, part.up) for part in parts)
    linears = tuple(module for modules in first_half for module in modules)
    entry = ScalePair("gate_up", "post_attention_layernorm", True, linears, alike=first_half, routers=routers)
    return (entry, *(ScalePair(name_activation(part), part.up, False, (part.down,)) for part in parts))


def name_activation(part: FeedForward) -> str:
    """What a part's inner activation is called: "down", with the part's name where there are several."""
    inner = part.name.partition(".")[2]
    return f"down of {inner}" if inner else "down"
