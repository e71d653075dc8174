from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgeawq.checkpoints.hf_folder import HfFolder
from edgeawq.checkpoints.open_model import open_model
from edgeawq.errors import CheckpointError, UnsupportedModelError
from tests.tiny_models import make_tiny_hf_checkpoint, make_tiny_model


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("shape", [{}, {"tie": False, "attention_bias": True, "n_layers": 3}])
def test_a_folder_gives_back_its_model(tmp_path, shards, shape):
    folder = make_tiny_hf_checkpoint(tmp_path / "some-model", 8, shards=shards, **shape)
    model = make_tiny_model(8, quantized=False, **shape)
    opened = open_model(str(folder))
    assert isinstance(opened, HfFolder)
    assert opened.name == "some-model"
    assert opened.config == model.config
    assert opened.tokenizer == model.tokenizer
    assert opened.generation_defaults == model.generation_defaults
    assert opened.quantization is None
    assert set(opened.tensor_names()) == set(model.tensors)
    for name in opened.tensor_names():
        assert np.array_equal(opened.tensor(name), model.tensors[name])
        assert opened.quantized_linear(name.removesuffix(".weight")) is None


def test_the_same_weights_as_transformers_reads(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = make_tiny_hf_checkpoint(tmp_path / "m", 9, shards=2)
    state = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    opened = open_model(str(folder))
    for name in opened.tensor_names():
        assert np.array_equal(opened.tensor(name), state[name].float().numpy())


def test_half_precision_is_widened(tmp_path):
    folder = make_tiny_hf_checkpoint(tmp_path / "m", 2)
    edit_tensors(folder, lambda tensors: tensors.update({k: v.astype(np.float16) for k, v in tensors.items()}))
    opened = open_model(str(folder))
    for name, values in make_tiny_model(2, quantized=False).tensors.items():
        assert opened.tensor(name).dtype == np.float32
        assert np.array_equal(opened.tensor(name), values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda t: t.pop("model.norm.weight"), CheckpointError, "model.norm.weight is missing"),
        (
            lambda t: t.update({"model.layers.1.mlp.up_proj.weight": np.ones((5, 6), np.float32)}),
            CheckpointError,
            r"model.layers.1.mlp.up_proj.weight has shape \[5, 6\].* \[320, 192\]",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": np.ones(32, np.float32)}),
            UnsupportedModelError,
            "q_norm",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(192, np.int32)}),
            UnsupportedModelError,
            "model.norm.weight is stored as I32",
        ),
    ],
)
def test_wrong_tensors_are_found_on_opening(tmp_path, change, error, words):
    folder = make_tiny_hf_checkpoint(tmp_path / "m", 2)
    edit_tensors(folder, change)
    with pytest.raises(error, match=words):
        open_model(str(folder))


def test_tables_and_tied_copies_are_ignored(tmp_path):
    folder = make_tiny_hf_checkpoint(tmp_path / "m", 2)

    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    edit_tensors(folder, add)
    opened = open_model(str(folder))
    assert "lm_head.weight" not in opened.tensor_names()
    with pytest.raises(CheckpointError, match="no tensor"):
        opened.tensor("lm_head.weight")


def test_an_untied_model_without_a_head(tmp_path):
    folder = make_tiny_hf_checkpoint(tmp_path / "m", 2)
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        open_model(str(folder))


def test_a_folder_without_tokenizer(tmp_path):
    folder = make_tiny_hf_checkpoint(tmp_path / "m", 2)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        open_model(str(folder))


def test_an_unknown_family_lists_the_known_ones(tmp_path):
    folder = make_tiny_hf_checkpoint(tmp_path / "m", 2)
    edit_config(folder, model_type="mamba")
    with pytest.raises(UnsupportedModelError, match="'mamba' is not supported; supported are llama, mistral, qwen2"):
        open_model(str(folder))


def test_other_quantizations_are_refused(tmp_path):
    folder = make_tiny_hf_checkpoint(tmp_path / "m", 2)
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedModelError, match="'gptq'"):
        open_model(str(folder))
