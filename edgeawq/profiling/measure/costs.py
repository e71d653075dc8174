"""What a step of a model costs, operation by operation, from its manifest and the kernels' estimates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cpu_kernels import abi
from cpu_kernels.estimates import (
    Estimates,
    estimate_attention,
    estimate_embedding,
    estimate_linear,
    estimate_merge,
    estimate_norm,
    estimate_quantize,
)
from edgeawq.profiling.schema import LinearFacts, OperationKind
from packager.manifest import Manifest, TensorEntry

NOTHING = Estimates(0, 0)
# What one call leaves for the next one at once lies in the nearest cache; weights and KV cache come from afar.
STREAMED: frozenset[OperationKind] = frozenset({"qkv", "o", "gate_up", "down", "head", "attention"})


@dataclass(frozen=True)
class StepShape:
    """One step: its tokens, where in the context, and after how many of them logits are wanted."""

    tokens: int
    position: int
    logits: float = 1.0  # rows of the head; a share where only some steps have one


def estimate_step(manifest: Manifest, shape: StepShape, *, kv_bits: int) -> Mapping[OperationKind, Estimates]:
    """Cost of each kind of operation in one step, all layers together."""
    model, tokens = manifest.model, shape.tokens
    costs: dict[OperationKind, Estimates] = {}

    def count(kind: OperationKind, cost: Estimates) -> None:
        costs[kind] = costs.get(kind, NOTHING) + cost

    embed, head = _tensor(manifest, "embed"), find_head(manifest)
    chunks = 1 if tokens > 1 else shape.position // (abi.KV_BLOCK * abi.CHUNK_BLOCKS) + 1
    count("embedding", estimate_embedding(embed.in_features, embed.bits, embed.group_size, tokens))
    attention = estimate_attention(
        model.n_heads, model.n_kv_heads, model.head_dim, shape.position, tokens, min(kv_bits, 32)
    )
    for layer in range(model.n_layers):
        linears = {name: _tensor(manifest, f"layers.{layer}.{name}") for name in ("qkv", "o", "gate_up", "down")}
        count("qkv", _linear(linears["qkv"], tokens))
        count("o", _linear(linears["o"], tokens))
        count("gate_up", _linear(linears["gate_up"], tokens))
        count("down", _linear(linears["down"], tokens))
        count("attention", attention)
        count("norm", estimate_norm(model.hidden_size, linears["qkv"].group_size, tokens).times(2))
        wide = model.n_heads * model.head_dim
        count("merge", estimate_merge(wide, linears["o"].group_size, chunks, tokens))
        count("quantize", estimate_quantize(model.intermediate_size, linears["down"].group_size, tokens))
    if shape.logits:
        rows = max(1, round(shape.logits))
        share = shape.logits / rows
        whole = _linear(head, rows)
        count("head", Estimates(round(whole.operations * share), round(whole.bytes * share)))
        count("norm", estimate_norm(model.hidden_size, head.group_size, rows))
    return costs


def list_linears(manifest: Manifest) -> tuple[LinearFacts, ...]:
    """Bits and bytes of each kind of matrix; a head that is the embedding is listed as the head it is read as."""
    facts = []
    for kind in ("qkv", "o", "gate_up", "down"):
        entries = [_tensor(manifest, f"layers.{layer}.{kind}") for layer in range(manifest.model.n_layers)]
        facts.append(_describe(kind, entries))
    facts.append(_describe("head", [find_head(manifest)]))
    if not manifest.model.tie_word_embeddings:
        facts.append(_describe("embedding", [_tensor(manifest, "embed")]))
    return tuple(facts)


def find_head(manifest: Manifest) -> TensorEntry:
    """The head's matrix, which may be the embedding's."""
    return _tensor(manifest, "embed" if manifest.model.tie_word_embeddings else "head")


def find_bits(manifest: Manifest) -> Mapping[OperationKind, int]:
    """Bits of the weights that each linear operation multiplies with."""
    bits: dict[OperationKind, int] = {"head": find_head(manifest).bits}
    for kind in ("qkv", "o", "gate_up", "down"):
        bits[kind] = _tensor(manifest, f"layers.0.{kind}").bits
    return bits


def _describe(kind: str, entries: list[TensorEntry]) -> LinearFacts:
    return LinearFacts(
        kind=kind,  # type: ignore[arg-type]
        bits=entries[0].bits,
        group_size=entries[0].group_size,
        weights=sum(entry.out_features * entry.in_features for entry in entries),
        bytes=sum(entry.nbytes for entry in entries),
    )


def _linear(entry: TensorEntry, tokens: int) -> Estimates:
    return estimate_linear(entry.out_features, entry.in_features, entry.bits, entry.group_size, tokens)


def _tensor(manifest: Manifest, name: str) -> TensorEntry:
    entry = manifest.tensor(name)
    assert entry is not None, name  # a manifest that was read has every tensor of its model
    return entry
