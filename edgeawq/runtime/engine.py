"""A bundle that is ready to answer: decoder and text side together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from edgeawq.runtime.bundle_text import open_bundle_text
from edgeawq.runtime.chat_template import ChatTemplate
from edgeawq.runtime.generate import DecoderLike
from edgeawq.runtime.sampler import SamplerSettings
from edgeawq.runtime.tokenizer import Tokenizer

Activations = Literal["int8", "float"]


@dataclass(frozen=True)
class Engine:
    """Everything a conversation needs; closes its decoder at the end of a `with` block."""

    decoder: DecoderLike
    tokenizer: Tokenizer
    template: ChatTemplate
    sampling: SamplerSettings  # the bundle's defaults
    stop_token_ids: frozenset[int]
    model_name: str
    device_name: str
    details: tuple[tuple[str, str], ...] = ()  # (name, value) of what else /stats shows

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.decoder.close()


def open_engine(
    bundle: Path, *, n_threads: int = 0, context_length: int | None = None, activations: Activations = "int8"
) -> Engine:
    """Open the bundle in a folder; n_threads 0 lets the decoder choose, context_length None takes the model's own."""
    from edgeawq.runtime.decoder import Decoder

    text = open_bundle_text(bundle)
    decoder = Decoder.open(bundle, n_threads=n_threads, context_length=context_length, activations=activations)
    return Engine(
        decoder=decoder,
        tokenizer=text.tokenizer,
        template=text.template,
        sampling=text.sampling,
        stop_token_ids=text.stop_token_ids,
        model_name=text.model_name,
        device_name=text.device_name,
        details=(
            ("kernels", decoder.isa),
            ("activations", decoder.activations),
            ("threads", str(decoder.n_threads)),
        ),
    )
