from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgeawq.checkpoints.safetensors_file import SafetensorsFile
from edgeawq.checkpoints.safetensors_writer import SafetensorsWriter


@pytest.mark.parametrize("seed", range(6))
def test_same_bytes_as_the_library_in_whatever_order_tensors_come(tmp_path, seed):
    rng = np.random.default_rng(seed)
    dtypes = [np.float32, np.float16, np.int32, np.uint8, np.float64, np.int64]
    tensors = {}
    for number in rng.permutation(12):
        shape = tuple(rng.integers(0, 5, rng.integers(1, 4)))
        tensors[f"t{number}.é"] = rng.normal(0, 50, shape).astype(dtypes[rng.integers(len(dtypes))])
    metadata = {"format": "pt"}
    save_file(tensors, tmp_path / "library", metadata=metadata)
    with SafetensorsWriter(tmp_path / "own", metadata) as writer:
        for name, values in tensors.items():
            writer.add(name, values)
        writer.finish()
    assert (tmp_path / "own").read_bytes() == (tmp_path / "library").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["library", "own"]


def test_arrays_that_are_not_contiguous_are_written_in_order(tmp_path):
    values = np.arange(24, dtype=np.int32).reshape(4, 6)
    with SafetensorsWriter(tmp_path / "x") as writer:
        writer.add("turned", values.T)
        writer.add("swapped", values.astype(">i4"))
        writer.add("scalar", np.array(3.5, np.float32))
        assert writer.n_bytes == 2 * values.nbytes + 4
        writer.finish()
    loaded = load_file(tmp_path / "x")
    assert np.array_equal(loaded["turned"], values.T)
    assert np.array_equal(loaded["swapped"], values)
    assert loaded["scalar"] == 3.5


def test_an_empty_file_is_valid(tmp_path):
    with SafetensorsWriter(tmp_path / "x") as writer:
        writer.finish()
    assert SafetensorsFile(tmp_path / "x").tensors == {}


def test_a_name_given_twice_is_refused_and_the_spool_removed(tmp_path):
    with pytest.raises(ValueError, match="twice"), SafetensorsWriter(tmp_path / "x") as writer:
        writer.add("a", np.ones(3, np.float32))
        writer.add("a", np.ones(3, np.float32))
    assert list(tmp_path.iterdir()) == []
