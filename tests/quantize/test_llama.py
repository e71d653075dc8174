from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeawq.checkpoints.config import RopeScaling
from edgeawq.checkpoints.open_model import open_model
from edgeawq.errors import UnsupportedModelError
from edgeawq.quantize.llama import KVCache, TorchDecoder, load_decoder
from edgeawq.quantize.perplexity import stream_model
from tests.quantize.runs import SHAPE, measure_nmse
from tests.tiny_models import make_tiny_hf_checkpoint, make_tiny_model

SCALINGS = {
    "none": None,
    "linear": RopeScaling("linear", factor=4.0),
    "llama3": RopeScaling(
        "llama3", 8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    ),
    "yarn": RopeScaling("yarn", factor=4.0, original_max_position_embeddings=128),
}


def load_reference(folder: Path, dtype: torch.dtype) -> Any:
    """The same folder as transformers computes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside transformers
        from transformers import LlamaForCausalLM

        return LlamaForCausalLM.from_pretrained(folder).to(dtype).eval()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_same_logits_as_transformers(tmp_path: Path, scaling: str, dtype: torch.dtype, limit: float) -> None:
    shape = {**SHAPE, "hidden": 96, "n_heads": 6, "rope_scaling": SCALINGS[scaling], "tie": scaling != "linear"}
    folder = make_tiny_hf_checkpoint(tmp_path / "tiny", 11, **shape)
    reference = load_reference(folder, dtype)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 320, (2, 45), generator=generator)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = reference(tokens).logits
    assert measure_nmse(load_decoder(open_model(str(folder)), dtype)(tokens), wanted) < limit


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_a_cache_gives_the_logits_of_the_whole_sequence(n_kv_heads: int) -> None:
    decoder = TorchDecoder(make_tiny_model(2, quantized=False, **{**SHAPE, "n_kv_heads": n_kv_heads}), torch.float64)
    tokens = torch.randint(0, 320, (3, 17), generator=torch.Generator().manual_seed(2))
    wanted = decoder(tokens)
    cache = KVCache.allocate(decoder.config, 3, 17, torch.float64)
    parts = [decoder(tokens[:, :5], cache), *(decoder(tokens[:, i : i + 1], cache) for i in range(5, 17))]
    assert cache.position == 17
    assert measure_nmse(torch.cat(parts, 1), wanted) < 1e-20


def test_a_token_sees_nothing_after_it() -> None:
    decoder = TorchDecoder(make_tiny_model(3, quantized=False, **SHAPE))
    tokens = torch.randint(3, 320, (1, 12), generator=torch.Generator().manual_seed(3))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 320
    first, second = decoder(tokens), decoder(changed)
    assert torch.equal(first[:, :7], second[:, :7])
    assert not torch.equal(first[:, 7:], second[:, 7:])


def test_a_quantized_model_is_computed_from_its_grids() -> None:
    quantized = make_tiny_model(4, group_size=32, **SHAPE)
    tokens = torch.randint(0, 320, (1, 9), generator=torch.Generator().manual_seed(4))
    from_grids = TorchDecoder(quantized)(tokens)
    quantized.grids.clear()  # the float tensors of the tiny model hold the grids' values
    assert torch.equal(TorchDecoder(quantized)(tokens), from_grids)


def test_another_family_is_refused() -> None:
    model = make_tiny_model(5, quantized=False, **SHAPE)
    model.config = replace(model.config, model_type="gpt_neox")
    for load in (load_decoder, stream_model):
        with pytest.raises(UnsupportedModelError, match="gpt_neox") as caught:
            load(model)
        assert caught.value.remedy
