"""A Hugging Face model folder as a Checkpoint."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.hf_config import read_generation_defaults, read_hf_config
from edgeawq.checkpoints.hf_tokenizer import check_tokenizer_file, read_hf_tokenizer
from edgeawq.checkpoints.json_file import read_json_object, read_optional_json_object
from edgeawq.checkpoints.model import QuantizationConfig, QuantizedLinear, TokenizerFiles
from edgeawq.checkpoints.safetensors_file import FLOAT_DTYPES
from edgeawq.checkpoints.tensor_shapes import HEAD, check_shapes, list_expected_shapes
from edgeawq.checkpoints.weight_files import WeightFiles
from edgeawq.errors import CheckpointError, UnsupportedModelError


class FolderDescription:
    """The JSON files and the tokenizer of a model folder; common to float and quantized folders."""

    def __init__(self, folder: Path, name: str = "") -> None:
        self.folder = folder
        self.name = name or folder.resolve().name
        self._generation = read_optional_json_object(folder / "generation_config.json")
        self.config: ModelConfig = read_hf_config(
            read_json_object(folder / "config.json"), self._generation, str(folder)
        )
        self.shapes = list_expected_shapes(self.config)  # of the float model's tensors, in its order
        check_tokenizer_file(folder)

    @cached_property
    def tokenizer(self) -> TokenizerFiles:
        """Tokenizer and chat template."""
        return read_hf_tokenizer(self.folder, self.config.bos_token_id, self.config.eos_token_ids)

    @property
    def generation_defaults(self) -> dict[str, float | int | bool]:
        """Sampling defaults of generation_config.json."""
        return read_generation_defaults(self._generation)


class HfFolder(FolderDescription):
    """A float Checkpoint over a folder of safetensors files; opening reads headers only."""

    def __init__(self, folder: Path, name: str = "") -> None:
        super().__init__(folder, name)
        self._weights = WeightFiles(folder)
        stored = self._weights.tensors
        expected = self.shapes
        check_shapes(expected, {tensor: entry.shape for tensor, entry in stored.items()}, str(folder))
        check_nothing_else(set(stored) - set(expected), self.config, str(folder))
        for tensor in expected:
            if stored[tensor].dtype not in FLOAT_DTYPES:
                raise UnsupportedModelError(
                    f"{folder}: the tensor {tensor} is stored as {stored[tensor].dtype}; a float type is needed "
                    f"({', '.join(FLOAT_DTYPES)})",
                    remedy="use the original (float16, bfloat16 or float32) checkpoint of the model",
                )

    @property
    def quantization(self) -> QuantizationConfig | None:
        """Always None: a float model."""
        return None

    def tensor_names(self) -> list[str]:
        """Hugging Face names in the model's order."""
        return list(self.shapes)

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor in float32."""
        if name not in self.shapes:
            raise CheckpointError(f"{self.folder} has no tensor {name}")
        return self._weights.read_float(name)

    def quantized_linear(self, module: str) -> QuantizedLinear | None:
        """Always None: no module is on AWQ's grid."""
        return None


def check_nothing_else(unexpected: set[str], config: ModelConfig, where: str) -> None:
    """Raise UnsupportedModelError for tensors that would change the output and have no place in the graph."""
    for name in sorted(unexpected):
        # Tables that older versions stored, and a copy of the embedding that a tied model does not use.
        if name.endswith("rotary_emb.inv_freq") or (name == HEAD and config.tie_word_embeddings):
            continue
        raise UnsupportedModelError(
            f"{where}: the tensor {name} has no place in a {config.model_type} decoder, so the model cannot be run "
            "faithfully",
            remedy="choose a model of the Llama family (Llama, Mistral, SmolLM2, TinyLlama, Qwen2.5, Mixtral …)",
        )
