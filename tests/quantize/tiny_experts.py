"""Tiny mixtures of experts: random weights under the names of checkpoints, or a folder that transformers wrote."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from edgeawq.checkpoints.config import Experts, ModelConfig
from edgeawq.checkpoints.experts import list_routers
from edgeawq.checkpoints.tensor_shapes import list_expected_shapes
from tests.tiny_models import (
    TinyCheckpoint,
    make_tiny_config,
    make_tiny_model,
    make_tiny_tokenizer,
    write_tokenizer_files,
)

EXPERT_FAMILIES = ("mixtral", "qwen2_moe")
N_EXPERTS, PER_TOKEN, WIDTH, SHARED_WIDTH = 5, 2, 64, 96


def make_expert_config(family: str, **shape: Any) -> ModelConfig:
    """The shape of a tiny Mixtral or Qwen2-MoE."""
    from dataclasses import replace

    is_qwen = family == "qwen2_moe"
    base = make_tiny_config(hidden=64, intermediate=WIDTH, n_heads=4, n_kv_heads=2, head_dim=16, **shape)
    experts = Experts(N_EXPERTS, PER_TOKEN, WIDTH, not is_qwen, SHARED_WIDTH if is_qwen else 0)
    return replace(
        base,
        model_type=family,
        experts=experts,
        attention_bias=is_qwen,
        attention_output_bias=not is_qwen,
    )


def make_expert_model(seed: int, family: str, **shape: Any) -> TinyCheckpoint:
    """A tiny mixture in memory."""
    config = make_expert_config(family, **shape)
    rng = np.random.default_rng(seed)
    routers = list_routers(config)
    tensors = {}
    for name, dims in list_expected_shapes(config).items():
        module, _, kind = name.rpartition(".")
        if len(dims) == 1:
            values = 0.1 * rng.standard_normal(dims) + ("norm" in module and kind == "weight")
        else:
            # Scores far enough apart that rounding elsewhere sends few tokens to another expert.
            size = 3.0 if module.endswith(tuple(f".{router}" for router in routers)) else 1.0
            values = (
                size * rng.standard_normal(dims) * (0.5 if module.endswith(("tokens", "head")) else dims[1] ** -0.5)
            )
        tensors[name] = values.astype(np.float32)
    return TinyCheckpoint(f"tiny-{family}", config, make_tiny_tokenizer(), tensors)


def starve(model: TinyCheckpoint, expert: int) -> None:
    """Keep a router from ever choosing an expert, in every layer: the others score a, -a, b and -b, and it scores 0."""
    router = next(iter(list_routers(model.config)))
    for layer in range(model.config.n_layers):
        scores = model.tensors[f"model.layers.{layer}.{router}.weight"]
        scores[expert] = 0.0
        others = [number for number in range(len(scores)) if number != expert]
        for number, other in enumerate(others[1::2]):
            scores[other] = -scores[others[2 * number]]


def write_expert_folder(folder: Path, seed: int, family: str) -> tuple[Path, Any]:
    """A folder as transformers saves it, with a tokenizer; also its model."""
    import torch

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # deprecations inside transformers
        import transformers

        shape: dict[str, Any] = {
            "hidden_size": 64,
            "intermediate_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 320,
            "max_position_embeddings": 512,
            "num_experts_per_tok": PER_TOKEN,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        torch.manual_seed(seed)
        if family == "mixtral":
            settings = transformers.MixtralConfig(**shape, num_local_experts=N_EXPERTS)
            model: Any = transformers.MixtralForCausalLM(settings)
        else:
            settings = transformers.Qwen2MoeConfig(
                **shape,
                num_experts=N_EXPERTS,
                moe_intermediate_size=WIDTH,
                shared_expert_intermediate_size=SHARED_WIDTH,
            )
            model = transformers.Qwen2MoeForCausalLM(settings)
        model.set_experts_implementation("eager")  # the others have no float64
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4.0)  # transformers' small start leaves every router undecided
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    write_tokenizer_files(folder, make_tiny_model(seed, quantized=False))
    return folder, model.eval()
