"""The one view of a model that quantizer and packager work on, whatever file format it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.config import ModelConfig


@dataclass(frozen=True)
class TokenizerFiles:
    """Everything a runtime needs to turn chat messages into tokens and tokens into text."""

    tokenizer_json: str  # the `tokenizers` library's own format
    chat_template: str | None  # Jinja source
    bos_token: str | None
    eos_token: str | None
    add_bos_token: bool = False  # only for plain text; a chat template writes its own


@dataclass(frozen=True)
class QuantizedLinear:
    """One linear layer on a uniform grid.

    weight[o, i] = (q[o, i] - zeros[o, i // group_size]) * scales[o, i // group_size]
    """

    q: npt.NDArray[np.uint8]  # [out_features, in_features], values 0 … 2**bits - 1
    scales: npt.NDArray[np.float16]  # [out_features, in_features // group_size]
    zeros: npt.NDArray[np.uint8]  # [out_features, in_features // group_size]
    bits: int
    group_size: int

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)"""
        return (self.q.shape[0], self.q.shape[1])


@dataclass(frozen=True)
class QuantizationConfig:
    """What `quantization_config` of a quantized checkpoint says."""

    bits: int
    group_size: int  # -1: one group for every output row
    zero_point: bool
    version: str  # "gemm" (AutoAWQ) | "gptq_v2"
    modules_to_not_convert: tuple[str, ...] = ()
    # Layers with other bits, by module such as "model.layers.0.mlp.down_proj".
    layer_bits: dict[str, int] = field(default_factory=dict)

    @property
    def all_bits(self) -> tuple[int, ...]:
        """Every number of bits that a layer of the body has, ascending."""
        return tuple(sorted({self.bits, *self.layer_bits.values()}))


class Checkpoint(Protocol):
    """A model on disk. Tensors are read when asked for, so that a model larger than memory can be walked through.

    Names are Hugging Face's: `model.embed_tokens.weight`, `model.layers.{i}.input_layernorm.weight`,
    `model.layers.{i}.self_attn.{q,k,v,o}_proj.weight`, `model.layers.{i}.post_attention_layernorm.weight`,
    `model.layers.{i}.mlp.{gate,up,down}_proj.weight`, `model.norm.weight`, `lm_head.weight` (absent when tied).
    """

    @property
    def name(self) -> str:
        """A short name for people, such as "smollm2-135m-instruct"."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def tokenizer(self) -> TokenizerFiles: ...

    @property
    def generation_defaults(self) -> dict[str, float | int | bool]:
        """Sampling defaults of `generation_config.json` (temperature, top_k, top_p, …); empty when there are none."""

    @property
    def quantization(self) -> QuantizationConfig | None:
        """None for a float model."""

    def tensor_names(self) -> list[str]: ...

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """A float tensor in float32, shape as in Hugging Face ([out_features, in_features] for a linear layer)."""

    def quantized_linear(self, module: str) -> QuantizedLinear | None:
        """The grid of `module` (such as "model.layers.0.mlp.up_proj"); None where that module is stored in float."""
