"""The embedded model through packager and runtime, against the same weights in torch."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from edgeawq.checkpoints.grid import dequantize, quantize_rtn
from edgeawq.checkpoints.model import QuantizationConfig
from edgeawq.checkpoints.open_model import open_model
from edgeawq.errors import EdgeawqError
from edgeawq.runtime.bundle_text import open_bundle_text
from edgeawq.runtime.chat_template import Message
from edgeawq.runtime.decoder import Decoder
from tests.cpu_kernels.native_kernels import normalized_error
from tests.runtime.native_bundles import pack_for_host

pytestmark = pytest.mark.model

PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain in two sentences why the sky is blue.",
    "List three fruits that are red.",
    "Who wrote the play Hamlet, and when?",
)
# Written for this test: ordinary prose, so that the two perplexities mean something.
TEXT = """The river had been rising for three days before anyone in the village said the word flood. At first it only
covered the stepping stones, which happened every spring, and the children made boats of bark and sent them down past
the mill. On the second day the meadow was a lake, and the farmers moved their sheep to the hill. By the third evening
the water stood at the door of the school, brown and quiet, carrying branches and once a wooden chair. The teacher lit a
lamp in the upper window so that people on the other bank would know that somebody was there. Nobody slept much. In the
morning the rain stopped, the sun came out over the wet roofs, and the river, as if it had only wanted to be noticed,
began to go back to its bed. It left mud in every garden, and for weeks afterwards the whole valley smelled of it. The
council met in the church and decided to build a wall, and then argued until autumn about who should pay for it."""


class RtnModel:
    """The embedded model with its body rounded to 4 bits in groups of 64 and its embedding to 8."""

    def __init__(self) -> None:
        self._float = open_model("embedded:smollm2-135m-instruct")
        self.name = self._float.name
        self.config = self._float.config
        self.tokenizer = self._float.tokenizer
        self.generation_defaults = self._float.generation_defaults
        self.quantization = QuantizationConfig(4, 64, True, "gemm")

    def tensor_names(self) -> list[str]:
        return self._float.tensor_names()

    @functools.cache  # noqa: B019 - one model for the whole module
    def quantized_linear(self, module):
        if not module.endswith(("proj", "embed_tokens")):
            return None
        return quantize_rtn(self._float.tensor(f"{module}.weight"), 4 if module.endswith("proj") else 8, 64)

    def tensor(self, name):
        grid = self.quantized_linear(name.removesuffix(".weight"))
        return self._float.tensor(name) if grid is None else dequantize(grid)


@pytest.fixture(scope="module")
def model():
    try:
        return RtnModel()
    except EdgeawqError as error:
        pytest.skip(f"{error.what}: {error.remedy}")


@pytest.fixture(scope="module")
def torch_decoder(model):
    from edgeawq.quantize.llama import load_decoder

    return load_decoder(model)


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory) -> Path:
    return pack_for_host(model, tmp_path_factory.mktemp("bundle") / "smollm2.edgeawq")


@pytest.fixture(scope="module")
def text(bundle):
    return open_bundle_text(bundle)


def test_float_logits_agree_with_torch(bundle, text, torch_decoder):
    import torch

    tokens = list(text.tokenizer.encode(TEXT))
    with torch.no_grad():
        expected = torch_decoder(torch.tensor([tokens]))[0].double().numpy()
    with Decoder.open(bundle, activations="float") as decoder:
        assert normalized_error(decoder.forward_all(tokens), expected) < 1e-6


@pytest.mark.parametrize("prompt", PROMPTS)
def test_64_greedy_tokens_are_torchs(bundle, text, torch_decoder, prompt):
    import torch

    messages = [Message("user", prompt)]
    tokens = list(text.tokenizer.encode(text.template.render(messages)))
    with Decoder.open(bundle, activations="float") as decoder:
        logits, ours = decoder.forward(tokens), []
        for _ in range(64):
            ours.append(int(logits.argmax()))
            logits = decoder.forward(ours[-1:])
    # one pass over the whole answer: token i must be torch's choice after everything before it
    with torch.no_grad():
        choices = torch_decoder(torch.tensor([tokens + ours]))[0].argmax(-1).tolist()
    assert choices[len(tokens) - 1 : -1] == ours


def test_int8_activations_cost_less_than_one_percent_of_perplexity(bundle, text):
    tokens = list(text.tokenizer.encode(TEXT))
    perplexity = {}
    for activations in ("float", "int8"):
        with Decoder.open(bundle, activations=activations) as decoder:
            logits = decoder.forward_all(tokens)[:-1].astype(np.float64)
        log_sum = np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)) + logits.max(axis=1)
        chosen = logits[np.arange(len(logits)), tokens[1:]]
        perplexity[activations] = float(np.exp(np.mean(log_sum - chosen)))
    assert perplexity["int8"] < 1.01 * perplexity["float"], perplexity


def test_resident_memory_is_the_file_and_little_more(bundle):
    """The weights are used as they lie: no copy, no repacking at load."""
    import subprocess
    import sys

    script = f"""
import resource
from edgeawq.runtime.decoder import Decoder
with Decoder.open({str(bundle)!r}, n_threads=1, context_length=256) as decoder:
    decoder.forward(list(range(100, 140)))
    status = open("/proc/self/status").read()
    anonymous = int(status.split("RssAnon:")[1].split()[0]) * 1024
    print(anonymous, decoder.kv_cache_bytes_per_token * 256)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    anonymous, cache = map(int, done.stdout.split())
    # Python, numpy and llvmlite take most of it; the 87 MB of weights are not among it
    assert anonymous < cache + (64 << 20)
