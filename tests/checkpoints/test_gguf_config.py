from __future__ import annotations

import math

import numpy as np
import pytest

from edgeawq.checkpoints.config import RopeScaling
from edgeawq.checkpoints.gguf_config import recognize_llama3_scaling
from edgeawq.checkpoints.gguf_file import GgufCheckpoint
from edgeawq.errors import CheckpointError, UnsupportedModelError
from tests.checkpoints.gguf_files import make_gguf


def list_llama3_factors(scaling: RopeScaling, head_dim: int, theta: float) -> np.ndarray:
    """Frequency by frequency, as the llama3 rule is published."""
    low_wavelength = scaling.original_max_position_embeddings / scaling.low_freq_factor
    high_wavelength = scaling.original_max_position_embeddings / scaling.high_freq_factor
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < high_wavelength:
            factors.append(1.0)
        elif wavelength > low_wavelength:
            factors.append(scaling.factor)
        else:
            smooth = (scaling.original_max_position_embeddings / wavelength - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor
            )
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
        RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
        RopeScaling("llama3", 16.0, 1.0, 8.0, 16384),
    ],
)
def test_llama3_scaling_is_recognized_from_its_factors(head_dim, scaling):
    factors = list_llama3_factors(scaling, head_dim, 500000.0)
    found = recognize_llama3_scaling(factors, head_dim, 500000.0)
    assert found is not None
    assert found.kind == "llama3"
    assert np.allclose(list_llama3_factors(found, head_dim, 500000.0), factors, rtol=2e-3)
    if scaling.original_max_position_embeddings == 8192:
        assert found == scaling


def test_factors_of_one_are_no_scaling_and_others_are_refused():
    assert recognize_llama3_scaling(np.ones(32, np.float32), 64, 10000.0) is None
    with pytest.raises(UnsupportedModelError, match="rope_freqs"):
        recognize_llama3_scaling(np.linspace(1, 9, 32, dtype=np.float32), 64, 500000.0)
    with pytest.raises(CheckpointError, match="shape"):
        recognize_llama3_scaling(np.ones(31, np.float32), 64, 10000.0)
    with pytest.raises(CheckpointError, match="impossible"):
        recognize_llama3_scaling(np.full(32, np.nan, np.float32), 64, 10000.0)


def test_factors_in_a_file_become_the_rule(tmp_path):
    scaling = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    factors = list_llama3_factors(scaling, 32, 500000.0)
    make_gguf(tmp_path / "m.gguf", 1, write={"extra_tensors": {"rope_freqs.weight": factors}}, rope_theta=500000.0)
    opened = GgufCheckpoint(tmp_path / "m.gguf")
    assert opened.config.rope_scaling == scaling
    assert "rope_freqs.weight" not in opened.tensor_names()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"llama.rope.scaling.type": "none"}, None),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"llama.rope.scale_linear": 2.0}, RopeScaling("linear", 2.0)),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 16.0,
                "llama.rope.scaling.original_context_length": 128,
            },
            RopeScaling("yarn", 16.0, original_max_position_embeddings=128),
        ),
    ],
)
def test_scaling_in_the_metadata(tmp_path, metadata, expected):
    make_gguf(tmp_path / "m.gguf", 1, write={"metadata": metadata})
    assert GgufCheckpoint(tmp_path / "m.gguf").config.rope_scaling == expected


def test_an_unknown_scaling_is_refused(tmp_path):
    make_gguf(tmp_path / "m.gguf", 1, write={"metadata": {"llama.rope.scaling.type": "longrope"}})
    with pytest.raises(UnsupportedModelError, match="longrope"):
        GgufCheckpoint(tmp_path / "m.gguf")
