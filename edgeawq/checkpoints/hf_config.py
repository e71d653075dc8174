"""config.json and generation_config.json as a ModelConfig, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.experts import describe_experts, read_experts
from edgeawq.checkpoints.hf_rope import describe_scaling, read_rope
from edgeawq.checkpoints.json_fields import JsonFields
from edgeawq.checkpoints.limits import check_dimensions
from edgeawq.errors import UnsupportedModelError

# model_type → class in transformers. All are the same graph: RMSNorm, rotary positions, grouped-query attention and
# SwiGLU, in the last two with experts. They differ in biases and in attention windows.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
}
QWEN_TYPES = ("qwen2", "qwen2_moe")  # biases on q, k and v only
MISTRAL_DEFAULT_WINDOW = 4096  # transformers' value where config.json does not name one
SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "do_sample", "max_new_tokens")


def read_hf_config(config: Mapping[str, object], generation: Mapping[str, object], where: str) -> ModelConfig:
    """Read the two files' contents; `where` names the folder in messages.

    Raises UnsupportedModelError for another family, CheckpointError for missing or impossible values.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{where}: the model family {model_type!r} is not supported; supported are {', '.join(ARCHITECTURES)}",
            remedy="choose a model of the Llama family (Llama, Mistral, SmolLM2, TinyLlama, Qwen2.5 …)",
        )
    fields = JsonFields(config, f"{where}/config.json")
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(f"{where}: the activation {activation!r} is not supported; silu is")
    hidden_size, n_heads = fields.read_int("hidden_size"), fields.read_int("num_attention_heads")
    max_position_embeddings = fields.read_int("max_position_embeddings", 2048)
    rope_theta, rope_scaling = read_rope(fields, max_position_embeddings)
    generation_fields = JsonFields(generation, f"{where}/generation_config.json")
    # generation_config.json is what chat models are released with; config.json often names only one of the ends.
    eos_ids = (*generation_fields.read_ids("eos_token_id"), *fields.read_ids("eos_token_id"))
    bos_ids = (*fields.read_ids("bos_token_id"), *generation_fields.read_ids("bos_token_id"))
    is_qwen = model_type in QWEN_TYPES
    has_qkv_bias = is_qwen and (model_type == "qwen2" or fields.read_bool("qkv_bias", True))
    found = ModelConfig(
        model_type=model_type,
        hidden_size=hidden_size,
        intermediate_size=fields.read_int("intermediate_size"),
        n_layers=fields.read_int("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=fields.read_int("num_key_value_heads", n_heads),
        head_dim=fields.read_int("head_dim", hidden_size // max(1, n_heads)),
        vocab_size=fields.read_int("vocab_size"),
        rms_norm_eps=fields.read_float("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=fields.read_bool("tie_word_embeddings", False),
        attention_bias=has_qkv_bias or (model_type == "llama" and fields.read_bool("attention_bias", False)),
        attention_output_bias=not is_qwen,
        mlp_bias=model_type == "llama" and fields.read_bool("mlp_bias", False),
        experts=read_experts(model_type, fields, where),
        rope_scaling=rope_scaling,
        bos_token_id=bos_ids[0] if bos_ids else None,
        eos_token_ids=tuple(dict.fromkeys(eos_ids)),
        extra=dict(config),
    )
    check_dimensions(found, where)
    return limit_to_window(found, fields)


def limit_to_window(config: ModelConfig, fields: JsonFields) -> ModelConfig:
    """Limit the context to the attention window, within which windowed and full attention are the same."""
    if config.model_type == "mistral":
        # A null means "no window" and is not the same as an absent field.
        window = fields.read_int("sliding_window", 0) if "sliding_window" in fields.values else MISTRAL_DEFAULT_WINDOW
    elif (
        config.model_type == "mixtral"
        or config.model_type in QWEN_TYPES
        and fields.read_bool("use_sliding_window", False)
    ):
        window = fields.read_int("sliding_window", 0)
    else:
        return config
    if not 0 < window < config.max_position_embeddings:
        return config
    note = (
        f"the model attends to the last {window:,} tokens only; its context of {config.max_position_embeddings:,} "
        f"is limited to {window:,}, where that makes no difference"
    )
    return replace(config, max_position_embeddings=window, notes=(*config.notes, note))


def read_generation_defaults(generation: Mapping[str, object]) -> dict[str, float | int | bool]:
    """Sampling defaults of generation_config.json; fields of other types are left out."""
    found = {name: generation.get(name) for name in SAMPLING_FIELDS}
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def describe_hf_config(config: ModelConfig, source: Mapping[str, object]) -> dict[str, object]:
    """A config.json for `config`, with whatever else the source's own config.json said.

    `source` may be empty or come from another format: only that of a Hugging Face model is taken over. The rotary
    settings are written in the older form, which every version of transformers and the AWQ tools read.
    """
    is_hugging_face = source.get("model_type") == config.model_type
    described: dict[str, object] = {"initializer_range": 0.02, "use_cache": True}
    if is_hugging_face:
        described = dict(source)
    for stale in (
        "_name_or_path",
        "rope_parameters",
        "quantization_config",
        "torch_dtype",
        "dtype",
        "transformers_version",
    ):
        described.pop(stale, None)
    eos_ids = list(config.eos_token_ids)
    described |= {
        "architectures": [ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": describe_scaling(config.rope_scaling),
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else (eos_ids or None),
        "torch_dtype": "float16",
    }
    described |= describe_experts(config)
    # With an attention window the reader's limit is ours; the model's own value stays for other tools.
    if not (is_hugging_face and isinstance(source.get("max_position_embeddings"), int)):
        described["max_position_embeddings"] = config.max_position_embeddings
    if config.model_type == "llama":
        described |= {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    if config.model_type == "mistral":
        described.setdefault("sliding_window", None if not is_hugging_face else MISTRAL_DEFAULT_WINDOW)
    return described
