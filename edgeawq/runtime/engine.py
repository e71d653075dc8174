"""A bundle that is ready to answer: decoder and text side together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from edgeawq.runtime.bundle_text import open_bundle_text
from edgeawq.runtime.cache_folder import find_cache_folder
from edgeawq.runtime.chat_template import ChatTemplate
from edgeawq.runtime.generate import DecoderLike
from edgeawq.runtime.native import NativeKernel
from edgeawq.runtime.sampler import SamplerSettings
from edgeawq.runtime.tokenizer import Tokenizer
from packager.bundle_files import open_bundle_file
from packager.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES

Activations = Literal["int8", "float"]


@dataclass(frozen=True)
class Engine:
    """Everything a conversation needs; closes its decoder at the end of a `with` block.

    Then, with the answer given, it also keeps what makes the next start quick.
    """

    decoder: DecoderLike
    tokenizer: Tokenizer
    template: ChatTemplate
    sampling: SamplerSettings  # the bundle's defaults
    stop_token_ids: frozenset[int]
    model_name: str
    device_name: str
    bundle_hash: str = ""  # SHA-256 of the manifest, which names every file of the bundle; saved caches belong to it
    details: tuple[tuple[str, str], ...] = ()  # (name, value) of what else /stats shows

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.decoder.close()
        if kind is None:
            self.tokenizer.prepare_next_start()


def open_engine(
    bundle: Path,
    *,
    n_threads: int = 0,
    context_length: int | None = None,
    activations: Activations = "int8",
    kernel: NativeKernel | None = None,
    kv_bits: int = 0,
    give_way: bool = False,
) -> Engine:
    """Open the bundle in a folder.

    n_threads 0 lets the decoder choose, context_length None takes the model's own, kernel None the bundle's best one;
    give_way: fewer threads while another program needs a core, for who waits for an answer and does not measure.
    """
    from edgeawq.runtime.decoder import Decoder

    text = open_bundle_text(bundle, vocabulary_folder=find_cache_folder() / "tokenizers")
    decoder = Decoder.open(
        bundle,
        n_threads=n_threads,
        context_length=context_length,
        activations=activations,
        kernel=kernel,
        kv_bits=kv_bits,
        give_way=give_way,
    )
    return Engine(
        decoder=decoder,
        tokenizer=text.tokenizer,
        template=text.template,
        sampling=text.sampling,
        stop_token_ids=text.stop_token_ids,
        model_name=text.model_name,
        device_name=text.device_name,
        bundle_hash=hash_bundle(bundle),
        details=(
            ("kernels", decoder.isa),
            ("activations", decoder.activations),
            ("threads", str(decoder.n_threads)),
            ("KV cache", f"{decoder.kv_bits} bits"),
        ),
    )


def hash_bundle(folder: Path) -> str:
    """The identity of a bundle: SHA-256 of its manifest, which holds the hashes of all its files."""
    with open_bundle_file(folder, MANIFEST_NAME) as file:
        return hashlib.sha256(file.read(MAX_MANIFEST_BYTES)).hexdigest()
