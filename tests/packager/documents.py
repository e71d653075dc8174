"""Manifests written by hand, and folders of files that fit them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from packager.manifest import ALIGNMENT, KERNEL_ABI, Manifest, dump_manifest
from packager.manifest_reader import parse_manifest

SHA = "0" * 64


def make_document(n_layers: int = 2, tied: bool = False) -> dict[str, Any]:
    """A valid manifest of a small model, as plain JSON values."""
    model = {
        "name": "tiny",
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "n_layers": n_layers,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 16,
        "vocab_size": 100,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "attention_bias": True,
        "mlp_bias": False,
        "rope_scaling": {
            "kind": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            "attention_factor": 0.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
        },
        "rope_attention_factor": 1.0,
        "bos_token_id": None,
        "eos_token_ids": [2, 3],
    }
    shapes = {"hidden": 64, "qkv": 128, "vocab": 100}
    tensors: list[dict[str, Any]] = []
    offset = 0

    def add(name: str, kind: str, out_features: int, in_features: int) -> None:
        nonlocal offset
        linear = kind == "linear"
        nbytes = out_features * in_features if linear else 4 * out_features
        tensors.append(
            {
                "name": name,
                "kind": kind,
                "bits": 4 if linear else 32,
                "group_size": 32 if linear else 0,
                "out_features": out_features,
                "in_features": in_features,
                "layout": "avx2" if linear else "",
                "offset": offset,
                "nbytes": nbytes,
            }
        )
        offset += -(-nbytes // ALIGNMENT) * ALIGNMENT

    add("embed", "linear", shapes["vocab"], 64)
    for i in range(n_layers):
        add(f"layers.{i}.input_norm", "f32", 64, 1)
        add(f"layers.{i}.qkv", "linear", 128, 64)
        add(f"layers.{i}.qkv_bias", "f32", 128, 1)
        add(f"layers.{i}.o", "linear", 64, 64)
        add(f"layers.{i}.post_norm", "f32", 64, 1)
        add(f"layers.{i}.gate_up", "linear", 192, 64)
        add(f"layers.{i}.down", "linear", 64, 96)
    add("final_norm", "f32", 64, 1)
    add("rope_inv_freq", "f32", 8, 1)
    if not tied:
        add("head", "linear", 100, 64)
    return {
        "format": "edgeawq-bundle",
        "format_version": 1,
        "tool": {"name": "edgeawq", "version": "0.1.0"},
        "model": model,
        "device": {"profile": "pi4", "isas": ["avx2"], "triple": "x86_64-unknown-linux-gnu", "cpu": "x86-64-v3"},
        "files": [
            {"path": "weights.bin", "size": offset, "sha256": SHA, "role": "weights"},
            {"path": "kernels/avx2.o", "size": 1000, "sha256": SHA, "role": "kernels"},
            {"path": "tokenizer.json", "size": 1000, "sha256": SHA, "role": "tokenizer"},
            {"path": "generation.json", "size": 10, "sha256": SHA, "role": "generation"},
        ],
        "kernels": [
            {
                "file": "kernels/avx2.o",
                "isa": "avx2",
                "triple": "x86_64-unknown-linux-gnu",
                "cpu": "x86-64-v3",
                "features": ["+fma", "-avx512f"],
                "bits": [4, 8],
                "abi": KERNEL_ABI,
            }
        ],
        "tensors": tensors,
    }


def parse(document: Any) -> Manifest:
    return parse_manifest(json.dumps(document).encode())


def write_bundle(folder: Path) -> Manifest:
    """A folder with files of the right sizes and hashes."""
    document = make_document(1)
    for index, entry in enumerate(document["files"]):
        content = bytes([index + 1]) * entry["size"]
        path = folder / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        entry["sha256"] = hashlib.sha256(content).hexdigest()
    manifest = parse(document)
    (folder / "manifest.json").write_bytes(dump_manifest(manifest))
    return manifest
