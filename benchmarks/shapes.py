"""Models of a given shape with random weights, as a bundle for this machine and as a GGUF file: for speed only.

Both are written directly in their final form (4-bit weights in groups of 64 and of 32), a slice at a time, so that a
7B shape takes seconds and no memory. What such a model answers means nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from device_profiles.detect import detect_host
from packager.manifest import KERNEL_ABI, DeviceSpec, KernelEntry, Manifest, ModelSpec, expected_tensors

GROUP_SIZE = 64
SLICE_BYTES = 64 << 20
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Shape:
    """A model of the Llama family."""

    name: str
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    tied: bool

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.n_heads


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("smollm2-135m", 576, 1536, 30, 9, 3, 49152, True),
        Shape("tinyllama-1.1b", 2048, 5632, 22, 32, 4, 32000, False),
        Shape("llama2-7b", 4096, 11008, 32, 32, 32, 32000, False),
    )
}


def write_bundle(shape: Shape, folder: Path, *, bits: int = 4, head_bits: int = 4) -> None:
    """Write a bundle of random weights for this machine; an existing one with the present kernels is kept."""
    from cpu_kernels.build import USUAL_BITS, build_object
    from cpu_kernels.isa.catalog import find_isa
    from packager.bundle import BundleWriter
    from packager.records import LAYOUTS, record_shape

    target = detect_host().target
    layout = LAYOUTS[find_isa(target.isa, target.machine).layout]
    widths = tuple(sorted({*USUAL_BITS, bits, head_bits}))
    native = build_object(target, target.isa, widths)
    text = _make_tokenizer(shape.vocab_size)
    if folder.exists():
        kept = {folder / f"kernels/{target.isa}.o": native, folder / "tokenizer.json": text}
        if all(path.exists() and path.read_bytes() == content for path, content in kept.items()):
            return
        shutil.rmtree(folder)
    model = _describe(shape)
    rng = np.random.default_rng(1)
    with BundleWriter(folder) as writer:
        for name, kind, out_features, in_features, required in expected_tensors(model):
            if not required:
                continue
            if kind == "f32":
                data = np.ones(out_features, "<f4") if name != "rope_inv_freq" else _frequencies(shape.head_dim)
                writer.add_tensor(
                    name, [data.view(np.uint8)], kind="f32", bits=32, group_size=0, out_features=out_features,
                    in_features=1, layout="",
                )  # fmt: skip
                continue
            width = head_bits if name in ("embed", "head") else bits
            record = record_shape(layout, out_features, in_features, width, GROUP_SIZE)
            writer.add_tensor(
                name, _random_records(rng, record, layout.record_rows), kind="linear", bits=width,
                group_size=GROUP_SIZE, out_features=out_features, in_features=in_features, layout=layout.name,
            )  # fmt: skip
        writer.add_file(f"kernels/{target.isa}.o", "kernels", native)
        writer.add_file("tokenizer.json", "tokenizer", text)
        writer.add_file("generation.json", "generation", b"{}")
        kernel = KernelEntry(
            f"kernels/{target.isa}.o", target.isa, target.triple, target.cpu, target.features, widths, KERNEL_ABI
        )
        device = DeviceSpec("host", (target.isa,), target.triple, target.cpu)
        writer.finish(Manifest("edgeawq", "0", model, device, (), (kernel,), ()))
        writer.publish()


def _describe(shape: Shape) -> ModelSpec:
    return ModelSpec(
        name=shape.name,
        model_type="llama",
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        max_position_embeddings=2048,
        tie_word_embeddings=shape.tied,
        attention_bias=False,
        mlp_bias=False,
        rope_scaling=None,
        rope_attention_factor=1.0,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


def _make_tokenizer(vocab_size: int) -> bytes:
    """A tokenizer that knows a word for every token: enough for a program that writes text."""
    vocab = {f" {token}": token for token in range(vocab_size)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": " 0"}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model}).encode()


def _frequencies(head_dim: int) -> npt.NDArray[np.float32]:
    return (10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)).astype("<f4")


def _random_records(rng: np.random.Generator, record: object, rows: int) -> Iterator[Bytes]:
    """Records whose scales are small numbers; everything else is random bytes."""
    total, size, zeros_at = record.records, record.record_bytes, record.zeros_offset  # type: ignore[attr-defined]
    step = max(1, SLICE_BYTES // size)
    for start in range(0, total, step):
        count = min(step, total - start)
        block = np.frombuffer(rng.bytes(count * size), np.uint8).reshape(count, size).copy()
        scales = rng.uniform(0.001, 0.003, (count, zeros_at // 2)).astype(np.float16)
        block[:, :zeros_at] = scales.view(np.uint8).reshape(count, -1)
        yield block.reshape(-1)


def write_gguf(shape: Shape, path: Path) -> None:
    """Write the same shape as a Q4_0 GGUF file (18 bytes for 32 weights); an existing one is kept."""
    if path.exists():
        return
    import gguf

    temporary = path.with_suffix(".part")
    writer = gguf.GGUFWriter(temporary, "llama", use_temp_file=False)
    writer.add_context_length(2048)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(1)

    def add(name: str, rows: int, columns: int) -> None:
        blocks = np.frombuffer(rng.bytes(rows * columns // 32 * 18), np.uint8).reshape(rows, columns // 32, 18).copy()
        scales = rng.uniform(0.001, 0.003, (rows, columns // 32)).astype(np.float16)
        blocks[:, :, :2] = scales.view(np.uint8).reshape(rows, columns // 32, 2)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    hidden, keys = shape.hidden_size, shape.n_kv_heads * shape.head_dim
    add("token_embd.weight", shape.vocab_size, hidden)
    if not shape.tied:
        add("output.weight", shape.vocab_size, hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for i in range(shape.n_layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{norm}.weight", np.ones(hidden, np.float32))
        add(f"blk.{i}.attn_q.weight", hidden, hidden)
        add(f"blk.{i}.attn_k.weight", keys, hidden)
        add(f"blk.{i}.attn_v.weight", keys, hidden)
        add(f"blk.{i}.attn_output.weight", hidden, hidden)
        add(f"blk.{i}.ffn_gate.weight", shape.intermediate_size, hidden)
        add(f"blk.{i}.ffn_up.weight", shape.intermediate_size, hidden)
        add(f"blk.{i}.ffn_down.weight", hidden, shape.intermediate_size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.rename(path)
