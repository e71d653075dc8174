"""Checkpoints of 2, 3, 4 and 8 bits, from the quantizer through packager and runtime, against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeawq.checkpoints.open_model import open_model
from edgeawq.errors import MissingExtraError
from edgeawq.quantize.pipeline import quantize_model
from edgeawq.quantize.settings import QuantizeSettings
from edgeawq.runtime.decoder import Decoder
from packager.pack import pack_checkpoint
from tests.cpu_kernels.native_kernels import normalized_error
from tests.runtime.native_bundles import host_profile, reference_logits
from tests.tiny_models import make_tiny_model

# Every layer's width once, and layers of one matrix that differ. All models need the same kernels.
MIXED = (("q_proj", 2), ("k_proj", 3), ("v_proj", 2), ("o_proj", 3), ("gate_proj", 4), ("up_proj", 8), ("down_proj", 2))


@pytest.mark.parametrize("group_size", [32, 64, -1])
@pytest.mark.parametrize("is_symmetric", [False, True])
def test_every_width_answers_as_torch_does(tmp_path: Path, group_size: int, is_symmetric: bool) -> None:
    model = make_tiny_model(group_size + 2, quantized=False)
    settings = QuantizeSettings(method="rtn", bits=3, bits_for=MIXED, group_size=group_size, is_symmetric=is_symmetric)
    quantize_model(model, tmp_path / "checkpoint", settings, n_threads=1)
    checkpoint = open_model(str(tmp_path / "checkpoint"))
    assert checkpoint.quantization is not None
    assert checkpoint.quantization.all_bits == (2, 3, 4, 8)
    bundle = tmp_path / "model.edgeawq"
    pack_checkpoint(checkpoint, host_profile(), bundle)
    tokens = np.random.default_rng(group_size + 2).integers(3, 300, 40).tolist()
    expected = reference_logits(checkpoint, tokens)
    with Decoder.open(bundle, activations="float") as decoder:
        assert normalized_error(decoder.forward_all(tokens), expected) < 1e-6
    with Decoder.open(bundle, activations="int8") as decoder:
        # A group of a whole row shares one scale of its activations.
        assert normalized_error(decoder.forward_all(tokens), expected) < 0.1


@pytest.mark.model
def test_the_embedded_model_in_two_and_three_bits_answers_as_torch_does(tmp_path: Path) -> None:
    try:
        source = open_model("embedded:smollm2-135m-instruct")
    except MissingExtraError as error:
        pytest.skip(f"{error.what}: {error.remedy}")
    overrides = ((r"layers\.(0|7|29)\.", 4), (r"layers\.(3|12|21)\.", 2))
    settings = QuantizeSettings(method="rtn", bits=3, group_size=64, bits_for=overrides)
    quantize_model(source, tmp_path / "checkpoint", settings, n_threads=2)
    checkpoint = open_model(str(tmp_path / "checkpoint"))
    pack_checkpoint(checkpoint, host_profile(), tmp_path / "model.edgeawq")
    tokens = list(range(1000, 1048))
    expected = reference_logits(checkpoint, tokens)
    with Decoder.open(tmp_path / "model.edgeawq", activations="float") as decoder:
        assert normalized_error(decoder.forward_all(tokens), expected) < 1e-6
