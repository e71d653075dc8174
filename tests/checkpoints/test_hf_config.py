from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from edgeawq.checkpoints.config import ModelConfig, RopeScaling
from edgeawq.checkpoints.hf_config import describe_hf_config, read_generation_defaults, read_hf_config
from edgeawq.checkpoints.hf_rope import read_attention_factor
from edgeawq.checkpoints.json_fields import JsonFields
from edgeawq.errors import CheckpointError, UnsupportedModelError
from tests.tiny_models import hf_config, make_tiny_config

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "eos_token_id": 2,
}
LLAMA3_RULE = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA3 = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)


def read(changes: dict[str, object] | None = None, generation: dict[str, object] | None = None) -> ModelConfig:
    config = {key: value for key, value in (LLAMA | (changes or {})).items() if value != "absent"}
    return read_hf_config(config, generation or {}, "folder")


def test_defaults_are_those_of_transformers():
    config = read()
    assert config == ModelConfig(
        model_type="llama",
        hidden_size=64,
        intermediate_size=96,
        n_layers=3,
        n_heads=4,
        n_kv_heads=4,
        head_dim=16,
        vocab_size=100,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        eos_token_ids=(2,),
    )
    assert config.extra == LLAMA


def test_every_field_is_read():
    shape = make_tiny_config(tie=False, attention_bias=True, rope_scaling=LLAMA3, rope_theta=500000.0)
    assert read_hf_config(hf_config(shape), {}, "folder") == shape


@pytest.mark.parametrize(
    ("changes", "theta", "scaling"),
    [
        ({"rope_theta": 500000.0, "rope_scaling": None}, 500000.0, None),
        ({"rope_scaling": {"rope_type": "default"}}, 10000.0, None),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, 10000.0, RopeScaling("linear", 4.0)),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 4096},
            10000.0,
            RopeScaling("dynamic", 2.0, original_max_position_embeddings=4096),
        ),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3_RULE}, "rope_theta": 5e5}, 5e5, LLAMA3),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3_RULE}}, 5e5, LLAMA3),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7e4}}, 7e4, None),
        ({"rope_parameters": None, "rope_theta": 7e4}, 7e4, None),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
            10000.0,
            RopeScaling("yarn", 4.0, original_max_position_embeddings=32768),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 1.5, "beta_fast": 16, "beta_slow": 2}},
            10000.0,
            RopeScaling("yarn", 4.0, 1.0, 4.0, 2048, 1.5, 16.0, 2.0),
        ),
    ],
)
def test_rotary_settings_of_old_and_new_files(changes, theta, scaling):
    config = read(changes)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


def test_yarns_attention_factor_follows_from_its_two_scales():
    rule = JsonFields({"mscale": 1.0, "mscale_all_dim": 0.8}, "x")
    expected = (0.1 * math.log(40) + 1) / (0.1 * 0.8 * math.log(40) + 1)
    assert read_attention_factor(rule, 40.0) == pytest.approx(expected)
    assert read_attention_factor(JsonFields({"mscale": 1.0}, "x"), 40.0) == 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "layer to layer"),
        ({"partial_rotary_factor": 0.5}, "full rotation"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "full rotation"),
        ({"model_type": "gemma2"}, "'gemma2' is not supported; supported are llama, mistral, qwen2"),
        ({"model_type": "absent"}, "None"),
        ({"model_type": ["llama"]}, "not supported"),
        ({"hidden_act": "gelu"}, "gelu"),
    ],
)
def test_what_is_not_supported_says_so(changes, words):
    with pytest.raises(UnsupportedModelError, match=words):
        read(changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "absent"}, "hidden_size is missing; a whole number is needed"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": 64.5}, "hidden_size is 64.5"),
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"num_hidden_layers": 10**9}, "n_layers is 1,000,000,000; possible is 1 to 1,024"),
        ({"num_attention_heads": 0}, "n_heads is 0"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"head_dim": 15}, "even number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": 3.0}, "rms_norm_eps 3.0"),
        ({"rope_theta": 0.0}, "rope_theta 0.0"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"eos_token_id": [1, None]}, "eos_token_id"),
        ({"eos_token_id": 100}, "the special token 100 is outside the 100 tokens"),
    ],
)
def test_damaged_fields_are_named_with_their_value(changes, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        read(changes)
    assert caught.value.what.startswith("folder")


@pytest.mark.parametrize(
    ("config", "generation", "eos", "bos"),
    [
        ({}, {}, (2,), None),
        ({"eos_token_id": [5, 6]}, {}, (5, 6), None),
        ({}, {"eos_token_id": [7, 2]}, (7, 2), None),
        ({"eos_token_id": None}, {"eos_token_id": 9, "bos_token_id": 1}, (9,), 1),
        ({"eos_token_id": "absent", "bos_token_id": 3}, {"bos_token_id": 1}, (), 3),
    ],
)
def test_special_tokens_come_from_both_files(config, generation, eos, bos):
    found = read(config, generation)
    assert (found.eos_token_ids, found.bos_token_id) == (eos, bos)


def test_mistrals_window_limits_the_context_and_is_noted():
    mistral = {"model_type": "mistral", "max_position_embeddings": 32768}
    assert read(mistral | {"sliding_window": None}).max_position_embeddings == 32768
    assert read(mistral | {"sliding_window": None}).notes == ()
    limited = read(mistral | {"sliding_window": 1024})
    assert limited.max_position_embeddings == 1024
    assert "1,024" in limited.notes[0]
    assert read(mistral).max_position_embeddings == 4096  # transformers' default
    assert read(mistral | {"sliding_window": 99999}).max_position_embeddings == 32768


def test_qwen2_has_biases_on_q_k_and_v_only():
    qwen2 = {"model_type": "qwen2", "sliding_window": 512, "max_position_embeddings": 4096}
    config = read(qwen2 | {"use_sliding_window": False})
    assert (config.attention_bias, config.attention_output_bias, config.mlp_bias) == (True, False, False)
    assert config.max_position_embeddings == 4096
    assert read(qwen2 | {"use_sliding_window": True}).max_position_embeddings == 512


def test_sampling_defaults_of_other_types_are_left_out():
    generation = {"temperature": 0.6, "top_k": 20, "do_sample": True, "top_p": None, "eos_token_id": 2, "min_p": "x"}
    assert read_generation_defaults(generation) == {"temperature": 0.6, "top_k": 20, "do_sample": True}


CONFIGS = [
    make_tiny_config(),
    make_tiny_config(tie=False, attention_bias=True, rope_scaling=LLAMA3),
    make_tiny_config(rope_scaling=RopeScaling("linear", 4.0)),
    make_tiny_config(rope_scaling=RopeScaling("dynamic", 4.0, original_max_position_embeddings=512)),
    make_tiny_config(rope_scaling=RopeScaling("yarn", 4.0, 1.0, 4.0, 128, 1.25, 16.0, 2.0)),
    replace(make_tiny_config(), eos_token_ids=(2, 0), bos_token_id=None),
    replace(make_tiny_config(), model_type="mistral"),
    replace(make_tiny_config(), model_type="qwen2", attention_bias=True, attention_output_bias=False),
    replace(make_tiny_config(), eos_token_ids=()),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_described_config_reads_as_the_same(config):
    assert read_hf_config(describe_hf_config(config, {}), {}, "folder") == config
    # And with the source's own file, whose other fields stay.
    source = describe_hf_config(config, {}) | {
        "pretraining_tp": 1,
        "torch_dtype": "bfloat16",
        "quantization_config": {},
    }
    described = describe_hf_config(config, source)
    assert read_hf_config(described, {}, "folder") == config
    assert described["pretraining_tp"] == 1
    assert described["torch_dtype"] == "float16"
    assert "quantization_config" not in described


def test_a_limited_context_is_not_written_back():
    source = LLAMA | {"model_type": "mistral", "sliding_window": 1024, "max_position_embeddings": 8192}
    config = read(source)
    described = describe_hf_config(config, source)
    assert (described["max_position_embeddings"], described["sliding_window"]) == (8192, 1024)
    assert read_hf_config(described, {}, "folder") == config


@pytest.mark.parametrize("config", CONFIGS)
def test_transformers_reads_a_described_config_as_the_same_model(config, tmp_path):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    described = describe_hf_config(config, {})
    theirs = transformers.AutoConfig.for_model(**described)
    assert theirs.architectures == [transformers.AutoModelForCausalLM._model_mapping[type(theirs)].__name__]
    assert theirs.head_dim == config.head_dim
    assert theirs.tie_word_embeddings is config.tie_word_embeddings
    assert theirs.rope_parameters["rope_theta"] == config.rope_theta
    if config.rope_scaling is not None:
        rule = ROPE_INIT_FUNCTIONS[config.rope_scaling.kind]
        _, attention_factor = rule(theirs, device="cpu")
        if config.rope_scaling.attention_factor:
            assert attention_factor == config.rope_scaling.attention_factor
    # What transformers saves, in its newer form, reads as the same too.
    theirs.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    again = read_hf_config(saved, {}, "folder")
    assert replace(again, bos_token_id=config.bos_token_id, eos_token_ids=config.eos_token_ids) == config
