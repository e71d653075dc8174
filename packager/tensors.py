"""Where each tensor of weights.bin comes from in a checkpoint, and its bytes, a slice of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.analysis import refuse_analysis
from edgeawq.checkpoints.experts import refuse_experts
from edgeawq.checkpoints.grid import quantize_rtn
from edgeawq.checkpoints.model import Checkpoint, QuantizationConfig, QuantizedLinear
from edgeawq.checkpoints.rope import compute_rope
from edgeawq.errors import CheckpointError, UnsupportedModelError, UsageError
from packager.layouts import GROUP_MULTIPLE, Layout, pack_gate_up, pack_linear, record_shape

DEFAULT_HEAD_BITS = 8
HEAD_BITS = (4, 8)
HEAD_GROUP_SIZES = (128, 64, 32)  # for a float head of a width that the body's group size does not divide
# Rows are permuted in slices of about this many weights, so that a head of 128 k rows needs little beside itself.
SLICE_WEIGHTS = 1 << 23

Bytes = npt.NDArray[np.uint8]

# tensor of a layer → the checkpoint's modules whose rows it holds
LAYER_LINEARS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
LAYER_BIASES = {"qkv_bias": LAYER_LINEARS["qkv"], "o_bias": LAYER_LINEARS["o"]}
LAYER_NORMS = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}
HEADS = {"embed": "model.embed_tokens", "head": "lm_head"}


@dataclass(frozen=True)
class TensorData:
    """One tensor, read and ready to be written; the fields are those of the manifest."""

    kind: str
    bits: int
    group_size: int
    layout: str
    chunks: Iterator[Bytes]


class TensorSource:
    """The tensors of a bundle, read from a checkpoint when asked for: one tensor is in memory at a time.

    `notes` collects what was rounded, in words.
    """

    def __init__(self, checkpoint: Checkpoint, layout: Layout, head_bits: int | None = None) -> None:
        """Raises CheckpointError, UnsupportedModelError or UsageError for a model that cannot be packed."""
        if head_bits is not None and head_bits not in HEAD_BITS:
            raise UsageError(f"a head of {head_bits} bits is not possible in a bundle", remedy="use 4 or 8")
        self.notes: list[str] = []
        self._checkpoint = checkpoint
        self._config = checkpoint.config
        refuse_analysis(checkpoint.config, checkpoint.name)
        refuse_experts(checkpoint.config, checkpoint.name)
        self._body = _require_quantized(checkpoint)
        self._layout = layout
        self._head_bits = head_bits
        self._names = set(checkpoint.tensor_names())
        self._refuse_leftovers()

    @property
    def body_bits(self) -> set[int]:
        """Bits of the weights in the layers."""
        return set(self._body.all_bits)

    def has(self, name: str) -> bool:
        """Whether the checkpoint has the tensor `name` of weights.bin; biases may be absent."""
        layer, _, part = name.rpartition(".")
        if part not in LAYER_BIASES:
            return True
        return any(f"model.{layer}.{module}.bias" in self._names for module in LAYER_BIASES[part])

    def estimate_bytes(self, name: str, kind: str, out_features: int, in_features: int) -> int:
        """About how many bytes the tensor will take; exact where its grid is like the body's."""
        if kind == "f32":
            return 4 * out_features
        bits = (self._head_bits or DEFAULT_HEAD_BITS) if name in HEADS else self._body.bits
        padded = -(-out_features // self._layout.record_rows) * self._layout.record_rows
        groups = in_features // self._body.group_size if self._body.group_size > 0 else 1
        return padded * in_features * bits // 8 + padded * (groups + 1) * 3

    def open(self, name: str, kind: str, out_features: int, in_features: int) -> TensorData:
        """Read the tensor `name` of the given shape."""
        if kind == "f32":
            vector = np.ascontiguousarray(self._read_vector(name), dtype="<f4")
            if vector.shape != (out_features,):
                raise _wrong_shape(name, vector.shape, (out_features,))
            return TensorData("f32", 32, 0, "", iter([vector.view(np.uint8)]))
        if name in HEADS:
            return self._open_head(HEADS[name], out_features, in_features)
        layer, _, part = name.rpartition(".")
        modules = [f"model.{layer}.{module}" for module in LAYER_LINEARS[part]]
        grids = _widen([self._read_grid(module) for module in modules])
        _check_alike(name, modules, grids, out_features, in_features)
        if part == "gate_up":
            gate, up = grids
            return self._slice(
                gate.shape,
                gate.bits,
                gate.group_size,
                lambda rows: pack_gate_up(_take_rows(gate, rows), _take_rows(up, rows), self._layout),
            )
        return self._slice_grid(grids[0] if len(grids) == 1 else _concatenate(grids))

    def _slice_grid(self, grid: QuantizedLinear) -> TensorData:
        return self._slice(
            grid.shape, grid.bits, grid.group_size, lambda rows: pack_linear(_take_rows(grid, rows), self._layout)
        )

    def _open_head(self, module: str, out_features: int, in_features: int) -> TensorData:
        grid = self._checkpoint.quantized_linear(module)
        if grid is not None:
            _check_grid(module, grid)
            _check_alike(module, [module], [grid], out_features, in_features)
            if self._head_bits is not None and grid.bits != self._head_bits:
                raise UsageError(
                    f"{module} lies on a {grid.bits}-bit grid, which pack keeps as it is; --head-bits {self._head_bits}"
                    " would round it a second time",
                    remedy=f"leave --head-bits out, or quantize the float model with --head-bits {self._head_bits}",
                )
            return self._slice_grid(grid)
        bits = self._head_bits or DEFAULT_HEAD_BITS
        group_size = self._choose_head_group(module, in_features)
        weight = self._checkpoint.tensor(f"{module}.weight")
        if weight.shape != (out_features, in_features):
            raise _wrong_shape(module, weight.shape, (out_features, in_features))
        self.notes.append(f"{module} was float and is rounded to {bits} bits in groups of {group_size}")
        return self._slice(
            weight.shape,
            bits,
            group_size,
            lambda rows: pack_linear(quantize_rtn(weight[rows], bits, group_size), self._layout),
        )

    def _slice(self, shape: tuple[int, ...], bits: int, group_size: int, pack: Callable[[slice], Bytes]) -> TensorData:
        rows, columns = shape
        record_shape(self._layout, rows, columns, bits, group_size)  # raises where no kernel fits
        # A slice ends where a record ends, so that the slices' bytes follow each other as those of the whole do.
        step = max(1, SLICE_WEIGHTS // columns // self._layout.record_rows) * self._layout.record_rows
        chunks = (pack(slice(start, start + step)) for start in range(0, rows, step))
        return TensorData("linear", bits, group_size, self._layout.name, chunks)

    def _choose_head_group(self, module: str, in_features: int) -> int:
        for size in (self._body.group_size, *HEAD_GROUP_SIZES):
            if size > 0 and size % GROUP_MULTIPLE == 0 and in_features % size == 0:
                return size
        raise UnsupportedModelError(
            f"{module} is {in_features} wide, which is no multiple of {GROUP_MULTIPLE}: no kernel takes it",
            remedy="use a model whose hidden size is a multiple of 32",
        )

    def _read_grid(self, module: str) -> QuantizedLinear:
        grid = self._checkpoint.quantized_linear(module)
        if grid is None:
            raise CheckpointError(
                f"{module} is stored in float; a bundle holds quantized layers",
                remedy="quantize the whole model with `edgeawq quantize`, without leaving modules out",
            )
        _check_grid(module, grid)
        return grid

    def _read_vector(self, name: str) -> npt.NDArray[np.float32]:
        if name == "final_norm":
            return self._checkpoint.tensor("model.norm.weight")
        if name == "rope_inv_freq":
            return compute_rope(self._config)[0]
        layer, _, part = name.rpartition(".")
        if part in LAYER_NORMS:
            return self._checkpoint.tensor(f"model.{layer}.{LAYER_NORMS[part]}.weight")
        return np.concatenate([self._read_bias(f"model.{layer}.{module}") for module in LAYER_BIASES[part]])

    def _read_bias(self, module: str) -> npt.NDArray[np.float32]:
        """A module's bias; zeros where it has none but a module beside it does."""
        if f"{module}.bias" in self._names:
            return self._checkpoint.tensor(f"{module}.bias")
        config = self._config
        heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads, "v_proj": config.n_kv_heads}
        return np.zeros(heads[module.rpartition(".")[2]] * config.head_dim, np.float32)  # [heads * head_dim]

    def _refuse_leftovers(self) -> None:
        """A tensor that the format has no place for must not be dropped in silence: the model would answer wrongly."""
        known = {"model.norm.weight", "lm_head.weight"}  # a tied head may be stored a second time
        modules = set(HEADS.values())
        for i in range(self._config.n_layers):
            known |= {f"model.layers.{i}.{norm}.weight" for norm in LAYER_NORMS.values()}
            for part in LAYER_LINEARS.values():
                modules |= {f"model.layers.{i}.{module}" for module in part}
        if self._config.attention_bias:
            attention = {f".{module}" for part in LAYER_BIASES.values() for module in part}
            known |= {f"{module}.bias" for module in modules if module.endswith(tuple(attention))}
        left = [
            name
            for name in sorted(self._names - known)
            if not name.endswith("rotary_emb.inv_freq")  # computed from the configuration instead
            and (name.endswith(".bias") or name.rpartition(".")[0] not in modules)
        ]
        if left:
            raise UnsupportedModelError(
                f"the checkpoint has {len(left)} tensors that a bundle of the Llama family has no place for,"
                f" such as {', '.join(left[:3])}",
                remedy="use a model of the Llama family; without these tensors it would answer wrongly",
            )


def _require_quantized(checkpoint: Checkpoint) -> QuantizationConfig:
    if checkpoint.quantization is None:
        raise CheckpointError(
            f"{checkpoint.name} is a float model; a bundle holds a quantized one",
            remedy="run `edgeawq quantize MODEL -o DIR` first, then pack DIR",
        )
    return checkpoint.quantization


def _check_grid(module: str, grid: QuantizedLinear) -> None:
    """A value that does not fit its bits would spill into its neighbour."""
    highest = max(int(grid.q.max(initial=0)), int(grid.zeros.max(initial=0)))
    if highest >= 1 << grid.bits:
        raise CheckpointError(
            f"{module} has the value {highest} on a {grid.bits}-bit grid", remedy="the checkpoint is damaged"
        )
    if not np.isfinite(grid.scales).all():
        raise CheckpointError(f"{module} has a scale that is no number", remedy="quantize the model again")


def _widen(grids: list[QuantizedLinear]) -> list[QuantizedLinear]:
    """Layers that become one matrix, all with the most bits among them: the same values, zeros and scales do."""
    bits = max(grid.bits for grid in grids)
    return [replace(grid, bits=bits) for grid in grids]


def _check_alike(
    name: str, modules: list[str], grids: list[QuantizedLinear], out_features: int, in_features: int
) -> None:
    kinds = {(grid.bits, grid.group_size) for grid in grids}
    if len(kinds) > 1:
        raise UnsupportedModelError(
            f"{', '.join(modules)} differ in bits or group size ({sorted(kinds)}) and cannot be stored as one matrix",
            remedy="quantize them with the same settings",
        )
    shape = (sum(grid.shape[0] for grid in grids), grids[0].shape[1])
    if shape != (out_features, in_features) or any(grid.shape[1] != in_features for grid in grids):
        raise _wrong_shape(name, shape, (out_features, in_features))


def _wrong_shape(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(
        f"{name} has the shape {list(shape)}; the model's configuration needs {list(wanted)}",
        remedy="config.json and the weights do not belong together; copy the model folder again",
    )


def _take_rows(grid: QuantizedLinear, rows: slice) -> QuantizedLinear:
    return replace(grid, q=grid.q[rows], scales=grid.scales[rows], zeros=grid.zeros[rows])


def _concatenate(grids: list[QuantizedLinear]) -> QuantizedLinear:
    return replace(
        grids[0],
        q=np.concatenate([grid.q for grid in grids]),
        scales=np.concatenate([grid.scales for grid in grids]),
        zeros=np.concatenate([grid.zeros for grid in grids]),
    )
