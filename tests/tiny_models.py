"""Tiny random Llama models for tests: in memory, as a Hugging Face folder and as an AWQ folder.

Fresh numbers for every seed, real tokenizer and chat template, a few hundred kilobytes; made in milliseconds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.config import ModelConfig, RopeScaling
from edgeawq.checkpoints.grid import dequantize, quantize_rtn
from edgeawq.checkpoints.model import QuantizationConfig, QuantizedLinear, TokenizerFiles

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ("the", "user", "assistant", "system", " the", " of", " capital", " and", "ing", " is", " what", " one", " two")


@dataclass
class TinyCheckpoint:
    """An in-memory `edgeawq.checkpoints.model.Checkpoint`; `grids` maps modules to their quantized form."""

    name: str
    config: ModelConfig
    tokenizer: TokenizerFiles
    tensors: dict[str, npt.NDArray[np.float32]]
    grids: dict[str, QuantizedLinear] = field(default_factory=dict)
    quantization: QuantizationConfig | None = None
    generation_defaults: dict[str, float | int | bool] = field(default_factory=dict)

    def tensor_names(self) -> list[str]:
        return list(self.tensors)

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        return self.tensors[name]

    def quantized_linear(self, module: str) -> QuantizedLinear | None:
        return self.grids.get(module)


def make_tiny_tokenizer() -> TokenizerFiles:
    """A byte-level BPE tokenizer with the special tokens 0, 1, 2, all 256 bytes and some merged words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[character] = len(vocab)
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = word[0].replace(" ", "Ġ")
        for character in word[1:]:
            if (left, character) not in merges:
                merges.append((left, character))
                vocab.setdefault(left + character, len(vocab))
            left += character
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return TokenizerFiles(
        tokenizer_json=tokenizer.to_str(),
        chat_template=CHAT_TEMPLATE,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )


def make_tiny_config(
    *,
    hidden: int = 192,
    intermediate: int = 320,
    n_layers: int = 2,
    n_heads: int = 6,
    n_kv_heads: int = 2,
    head_dim: int = 32,
    vocab: int = 320,
    max_positions: int = 512,
    tie: bool = True,
    attention_bias: bool = False,
    rope_theta: float = 10000.0,
    rope_scaling: RopeScaling | None = None,
) -> ModelConfig:
    """The shape of a tiny Llama. `vocab` must not be smaller than the tokenizer's (about 310)."""
    return ModelConfig(
        model_type="llama",
        hidden_size=hidden,
        intermediate_size=intermediate,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        rms_norm_eps=1e-5,
        rope_theta=rope_theta,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tie,
        attention_bias=attention_bias,
        rope_scaling=rope_scaling,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Module name → (out_features, in_features) of every linear layer of the body."""
    wide, narrow = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    shapes = {}
    for i in range(config.n_layers):
        prefix = f"model.layers.{i}"
        shapes[f"{prefix}.self_attn.q_proj"] = (wide, config.hidden_size)
        shapes[f"{prefix}.self_attn.k_proj"] = (narrow, config.hidden_size)
        shapes[f"{prefix}.self_attn.v_proj"] = (narrow, config.hidden_size)
        shapes[f"{prefix}.self_attn.o_proj"] = (config.hidden_size, wide)
        shapes[f"{prefix}.mlp.gate_proj"] = (config.intermediate_size, config.hidden_size)
        shapes[f"{prefix}.mlp.up_proj"] = (config.intermediate_size, config.hidden_size)
        shapes[f"{prefix}.mlp.down_proj"] = (config.hidden_size, config.intermediate_size)
    return shapes


def make_tiny_tensors(config: ModelConfig, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Random float weights under Hugging Face's names, scaled so that activations keep their size."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, npt.NDArray[np.float32]] = {}

    def add(name: str, shape: tuple[int, ...], scale: float, mean: float = 0.0) -> None:
        tensors[name] = (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    add("model.embed_tokens.weight", (config.vocab_size, config.hidden_size), 0.5)
    for module, shape in linear_shapes(config).items():
        add(f"{module}.weight", shape, shape[1] ** -0.5)
        if config.attention_bias and ".self_attn." in module:
            add(f"{module}.bias", (shape[0],), 0.1)
    for i in range(config.n_layers):
        add(f"model.layers.{i}.input_layernorm.weight", (config.hidden_size,), 0.1, 1.0)
        add(f"model.layers.{i}.post_attention_layernorm.weight", (config.hidden_size,), 0.1, 1.0)
    add("model.norm.weight", (config.hidden_size,), 0.1, 1.0)
    if not config.tie_word_embeddings:
        add("lm_head.weight", (config.vocab_size, config.hidden_size), 0.5)
    return tensors


def make_tiny_model(
    seed: int = 0, *, quantized: bool = True, group_size: int = 64, head_bits: int | None = 8, **shape: Any
) -> TinyCheckpoint:
    """A tiny model in memory; `shape` goes to `make_tiny_config`.

    quantized: the body on a 4-bit grid (its float tensors are then the grid's values). head_bits: embedding and
    head on a grid of so many bits; None leaves them float.
    """
    config = make_tiny_config(**shape)
    tensors = make_tiny_tensors(config, seed)
    model = TinyCheckpoint(
        name=f"tiny-{seed}",
        config=config,
        tokenizer=make_tiny_tokenizer(),
        tensors=tensors,
        generation_defaults={"temperature": 0.7, "top_k": 40, "do_sample": True},
    )
    if not quantized:
        return model
    model.quantization = QuantizationConfig(bits=4, group_size=group_size, zero_point=True, version="gemm")
    modules = dict.fromkeys(linear_shapes(config), 4)
    if head_bits is not None:
        modules["model.embed_tokens"] = head_bits
        if not config.tie_word_embeddings:
            modules["lm_head"] = head_bits
    for module, bits in modules.items():
        grid = quantize_rtn(tensors[f"{module}.weight"], bits=bits, group_size=group_size)
        model.grids[module] = grid
        tensors[f"{module}.weight"] = dequantize(grid)
    return model


def make_tiny_hf_checkpoint(path: Path, seed: int = 0, *, shards: int = 1, **shape: Any) -> Path:
    """Write a float model as a Hugging Face folder (float32 safetensors in `shards` files) and return the folder."""
    from safetensors.numpy import save_file

    model = make_tiny_model(seed, quantized=False, **shape)
    path.mkdir(parents=True, exist_ok=True)
    names = sorted(model.tensors)
    if shards == 1:
        save_file(model.tensors, path / "model.safetensors", metadata={"format": "pt"})
    else:
        files = {f"model-{i + 1:05d}-of-{shards:05d}.safetensors": names[i::shards] for i in range(shards)}
        for file, members in files.items():
            save_file({name: model.tensors[name] for name in members}, path / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, members in files.items() for name in members}}
        _write_json(path / "model.safetensors.index.json", index)
    _write_json(path / "config.json", hf_config(model.config))
    write_tokenizer_files(path, model)
    return path


def make_tiny_awq_checkpoint(
    path: Path, seed: int = 0, *, group_size: int = 64, head_bits: int | None = 8, **shape: Any
) -> Path:
    """Write a quantized model as an AutoAWQ folder, the way `edgeawq quantize` does, and return the folder."""
    from edgeawq.checkpoints.write_awq import write_awq_checkpoint

    model = make_tiny_model(seed, group_size=group_size, head_bits=head_bits, **shape)
    assert model.quantization is not None
    body = linear_shapes(model.config)
    packed = {f"{module}.weight" for module in body}
    return write_awq_checkpoint(
        path,
        config=model.config,
        tokenizer=model.tokenizer,
        generation_defaults=model.generation_defaults,
        quantization=model.quantization,
        tensors=[(name, tensor) for name, tensor in model.tensors.items() if name not in packed],
        linears=[(module, model.grids[module]) for module in body],
        grids={module: grid for module, grid in model.grids.items() if module not in body},
        source_config=hf_config(model.config),
        extra_files={},
    )


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """config.json of a Llama with this shape."""
    result: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "hidden_act": "silu",
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids[0],
        "torch_dtype": "float32",
    }
    if config.rope_scaling is not None:
        scaling = {key: value for key, value in asdict(config.rope_scaling).items() if value}
        result["rope_scaling"] = {"rope_type": scaling.pop("kind"), **scaling}
    return result


def write_tokenizer_files(path: Path, model: TinyCheckpoint) -> None:
    """tokenizer.json, tokenizer_config.json (with the chat template) and generation_config.json."""
    (path / "tokenizer.json").write_text(model.tokenizer.tokenizer_json, encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": model.tokenizer.bos_token,
        "eos_token": model.tokenizer.eos_token,
        "chat_template": model.tokenizer.chat_template,
    }
    _write_json(path / "tokenizer_config.json", settings)
    generation = {"bos_token_id": model.config.bos_token_id, "eos_token_id": list(model.config.eos_token_ids)}
    _write_json(path / "generation_config.json", {**generation, **model.generation_defaults})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
