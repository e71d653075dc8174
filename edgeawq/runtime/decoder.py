"""The decoder on the device: buffers, a KV cache and threads around one native function. Python touches no tensor."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cpu_kernels import abi
from edgeawq.errors import ContextFullError, GenerationError, UsageError
from edgeawq.runtime.bundle import Bundle, open_bundle
from edgeawq.runtime.cpu import available_cpus
from edgeawq.runtime.native import Function, choose_kernel, load_object
from packager.manifest import ModelSpec, TensorEntry

Activations = Literal["int8", "float"]
FloatArray = npt.NDArray[np.float32]

DEFAULT_CONTEXT_LENGTH = 4096  # tokens, where the model allows more: the cache of a small device is small
MAX_THREADS = 64
# About 40 µs of pauses on a desktop CPU: longer than any barrier of an idle machine, shorter than a time slice.
SPIN_LIMIT = 1000
_CACHE_DTYPES: dict[str, np.dtype[Any]] = {
    "i8": np.dtype(np.int8),
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
}


class Decoder:
    """A model in memory with its KV cache. Not safe for use from several threads at once."""

    def __init__(
        self, bundle: Bundle, *, n_threads: int, context_length: int, activations: Activations, kv_bits: int
    ) -> None:
        """Use `Decoder.open`. n_threads ≥ 1; context_length in tokens."""
        self.bundle = bundle
        self.config: ModelSpec = bundle.manifest.model
        self.context_length = context_length
        self.n_threads = n_threads
        self.activations: Activations = activations
        self.position = 0  # tokens in the KV cache
        kernel = choose_kernel(bundle.manifest.kernels)
        self.isa = kernel.isa
        self._native = load_object(bundle.kernel_object(kernel))
        self._step = self._native.function(f"edgeawq_step_{activations}", 1)
        self.kv_bits = kv_bits
        self._cache_dtype = _CACHE_DTYPES[abi.CACHE_ELEMENTS[activations][kv_bits]]
        self._buffers = _Buffers(self.config, n_threads, context_length, self._cache_dtype)
        self._cosines, self._sines = _rotary_tables(bundle, context_length)
        self._context = _make_context(bundle, self._buffers, self._cosines, self._sines, n_threads, context_length)
        self._context[abi.KV_BITS] = kv_bits
        self._context_address = int(self._context.ctypes.data)
        serve = self._native.function(f"edgeawq_serve_{activations}", 2)
        stop = self._native.function("edgeawq_stop", 1)
        keep = (self._native, self._context, self._buffers, bundle, self._cosines, self._sines)
        threads = _start_threads(serve, self._context_address, n_threads, keep)
        # also runs at the interpreter's end: a thread must not outlive the memory it works on
        self._finalizer = weakref.finalize(self, _stop_threads, stop, self._context_address, threads, keep)

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        n_threads: int = 0,
        context_length: int | None = None,
        activations: Activations = "int8",
        kv_bits: int | None = None,
    ) -> Decoder:
        """Open the bundle in `folder`.

        n_threads: 0 takes every CPU this process may use. context_length: tokens; None takes the model's own, at most
        DEFAULT_CONTEXT_LENGTH. activations: "int8" (fast) or "float" (float32, to compare with).
        kv_bits: of the KV cache's elements, 16 or 8; None takes 16, and with float activations 32, the only choice.
        Raises BundleError, KernelError or UsageError.
        """
        bundle = open_bundle(Path(folder))
        longest = bundle.manifest.model.max_position_embeddings
        if context_length is None:
            context_length = min(longest, DEFAULT_CONTEXT_LENGTH)
        if not 1 <= context_length <= longest:
            raise UsageError(
                f"a context of {context_length} tokens is outside 1 … {longest}, the limit of the model",
                remedy=f"choose --context-length between 1 and {longest}",
            )
        if not 0 <= n_threads <= MAX_THREADS:
            raise UsageError(f"{n_threads} threads are outside 0 … {MAX_THREADS}", remedy="0 takes every CPU")
        if activations not in ("int8", "float"):
            raise UsageError(f"unknown activations {activations!r}", remedy="known: int8, float")
        choices = list(abi.CACHE_ELEMENTS[activations])
        if kv_bits is not None and kv_bits not in choices:
            raise UsageError(
                f"a KV cache of {kv_bits} bits is not possible with {activations} activations",
                remedy=f"use {' or '.join(map(str, choices))}",
            )
        return cls(
            bundle,
            n_threads=n_threads or min(available_cpus(), MAX_THREADS),
            context_length=context_length,
            activations=activations,
            kv_bits=kv_bits or choices[0],
        )

    def forward(self, tokens: Sequence[int]) -> FloatArray:
        """Append `tokens` at `position` and return the logits after the last one.

        Returns float32 [vocab_size], a view that is valid until the next call.
        Raises ContextFullError (nothing is changed then) or GenerationError.
        """
        ids = self._check(tokens)
        for start in range(0, len(ids), abi.MAX_TOKENS):
            part = ids[start : start + abi.MAX_TOKENS]
            last = start + len(part) == len(ids)
            self._run(part, abi.LOGITS_LAST if last else abi.LOGITS_NONE)
        logits: FloatArray = self._buffers.logits[0, : self.config.vocab_size]
        return logits

    def forward_all(self, tokens: Sequence[int]) -> FloatArray:
        """Append `tokens` and return the logits after each: float32 [tokens, vocab_size]. For perplexity."""
        ids = self._check(tokens)
        result = np.empty((len(ids), self.config.vocab_size), np.float32)
        self._buffers.grow_logits(min(len(ids), abi.MAX_TOKENS))
        self._context[abi.LOGITS] = self._buffers.logits.ctypes.data
        for start in range(0, len(ids), abi.MAX_TOKENS):
            part = ids[start : start + abi.MAX_TOKENS]
            self._run(part, abi.LOGITS_ALL)
            result[start : start + len(part)] = self._buffers.logits[: len(part), : self.config.vocab_size]
        return result

    def rewind(self, position: int) -> None:
        """Forget every token from `position` on."""
        if not 0 <= position <= self.position:
            raise GenerationError(
                f"cannot go back to token {position}: the cache holds {self.position}",
                remedy="start a new conversation",
            )
        self.position = position

    @property
    def memory_bytes(self) -> int:
        """Bytes of mapped weights and of buffers (the KV cache counts whole; its unused part is never touched)."""
        return self.bundle.weights.nbytes + self._buffers.nbytes + self._cosines.nbytes + self._sines.nbytes

    @property
    def kv_cache_bytes_per_token(self) -> int:
        """Bytes that one more token of context takes."""
        features = self.config.n_layers * self.config.n_kv_heads * self.config.head_dim
        scales = 4 * features // self.config.head_dim if self._cache_dtype == np.int8 else 0
        return 2 * (features * self._cache_dtype.itemsize + scales)

    def close(self) -> None:
        """Stop the threads. The decoder cannot be used afterwards."""
        self._finalizer()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, tokens: Sequence[int]) -> npt.NDArray[np.int32]:
        if not self._finalizer.alive:
            raise GenerationError("the decoder is closed", remedy="open the bundle again")
        if len(tokens) == 0:
            raise GenerationError("there are no tokens to run", remedy="give at least one token")
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            bad = next(token for token in tokens if not 0 <= token < self.config.vocab_size)
            raise GenerationError(
                f"token {bad} is outside the vocabulary of {self.config.vocab_size}",
                remedy="the tokenizer does not belong to this model: pack the checkpoint again",
            )
        if self.position + len(ids) > self.context_length:
            raise ContextFullError(
                f"{len(ids)} more tokens do not fit: {self.position} of {self.context_length} are used",
                remedy="start a new conversation (/reset) or open the model with a larger --context-length",
            )
        return ids.astype(np.int32)

    def _run(self, tokens: npt.NDArray[np.int32], logits_mode: int) -> None:
        self._buffers.tokens[: len(tokens)] = tokens
        self._context[abi.N_TOKENS] = len(tokens)
        self._context[abi.POSITION] = self.position
        self._context[abi.LOGITS_MODE] = logits_mode
        self._step(self._context_address)
        self.position += len(tokens)


class _Buffers:
    """Everything the native code writes to. Zeroed memory is taken from the system when it is first touched."""

    def __init__(self, model: ModelSpec, n_threads: int, context_length: int, cache_dtype: np.dtype[Any]) -> None:
        attention_width = model.n_heads * model.head_dim
        widest = max(model.hidden_size, model.intermediate_size, attention_width)
        blocks = -(-context_length // abi.KV_BLOCK)
        slots = max(n_threads, abi.MAX_TOKENS)
        self.cache_length = blocks * abi.KV_BLOCK
        self.qkv_stride = attention_width + 2 * model.n_kv_heads * model.head_dim
        self.logits_stride = -(-model.vocab_size // 16) * 16
        self.row_bytes = abi.activation_row_bytes(widest)
        self.scratch_bytes = abi.scratch_bytes(
            model.hidden_size, model.intermediate_size, model.n_heads, model.n_kv_heads, model.head_dim
        )
        cache = (model.n_layers, model.n_kv_heads, self.cache_length * model.head_dim)
        self.keys = _aligned_zeros(cache, cache_dtype)  # [layers, kv heads, blocks · head_dim · KV_BLOCK]
        self.values = _aligned_zeros(cache, cache_dtype)  # [layers, kv heads, positions · head_dim]
        scales = (model.n_layers, model.n_kv_heads, self.cache_length if cache_dtype == np.int8 else 0)
        self.key_scales = _aligned_zeros(scales, np.float32)  # [layers, kv heads, positions]
        self.value_scales = _aligned_zeros(scales, np.float32)
        self.tokens = _aligned_zeros((abi.MAX_TOKENS,), np.int32)
        self.residual = _aligned_zeros((abi.MAX_TOKENS, model.hidden_size), np.float32)
        self.qkv = _aligned_zeros((abi.MAX_TOKENS, -(-self.qkv_stride // 16) * 16), np.float32)
        self.gated = _aligned_zeros((abi.MAX_TOKENS, model.intermediate_size), np.float32)
        self.rows = _aligned_zeros((abi.MAX_TOKENS, self.row_bytes), np.uint8)
        self.scratch = _aligned_zeros((n_threads, self.scratch_bytes), np.uint8)
        self.partial = _aligned_zeros((slots, model.n_heads, model.head_dim), np.float32)
        self.partial_state = _aligned_zeros((slots, model.n_heads, 2), np.float32)
        self.sync = _aligned_zeros((abi.SYNC_WORDS,), np.int32)
        self.logits = _aligned_zeros((1, self.logits_stride), np.float32)

    def grow_logits(self, rows: int) -> None:
        """Make room for the logits of `rows` tokens."""
        if self.logits.shape[0] < rows:
            self.logits = _aligned_zeros((rows, self.logits_stride), np.float32)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))


def _aligned_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """np.zeros that starts on a cache line."""
    kind = np.dtype(dtype)
    nbytes = math.prod(shape) * kind.itemsize
    memory = np.zeros(nbytes + 64, np.uint8)
    start = -int(memory.ctypes.data) % 64
    return memory[start : start + nbytes].view(kind).reshape(shape)


def _rotary_tables(bundle: Bundle, context_length: int) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines, float32 [positions, head_dim / 2]; angles rounded to float32 as in the reference models."""
    positions = np.arange(context_length, dtype=np.float32)
    angles = positions[:, None] * bundle.float_tensor("rope_inv_freq")[None, :]
    factor = bundle.manifest.model.rope_attention_factor
    wide = angles.astype(np.float64)
    return (np.cos(wide) * factor).astype(np.float32), (np.sin(wide) * factor).astype(np.float32)


def _float_bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))


def _write_linear(words: npt.NDArray[np.int64], bundle: Bundle, tensor: TensorEntry, bias: TensorEntry | None) -> None:
    words[abi.WEIGHTS] = bundle.address(tensor)
    words[abi.OUT_FEATURES] = tensor.out_features
    words[abi.IN_FEATURES] = tensor.in_features
    words[abi.GROUP_SIZE] = tensor.group_size
    words[abi.BITS] = tensor.bits
    words[abi.BIAS] = 0 if bias is None else bundle.address(bias)


def _write_layer(words: npt.NDArray[np.int64], bundle: Bundle, buffers: _Buffers, index: int) -> None:
    prefix = f"layers.{index}"
    words[abi.INPUT_NORM] = bundle.address(bundle.tensor(f"{prefix}.input_norm"))
    words[abi.POST_NORM] = bundle.address(bundle.tensor(f"{prefix}.post_norm"))
    for name, start in (
        ("qkv", abi.LAYER_QKV),
        ("o", abi.LAYER_O),
        ("gate_up", abi.LAYER_GATE_UP),
        ("down", abi.LAYER_DOWN),
    ):
        bias = bundle.manifest.tensor(f"{prefix}.{name}_bias")
        _write_linear(words[start : start + abi.LINEAR_WORDS], bundle, bundle.tensor(f"{prefix}.{name}"), bias)
    words[abi.KEYS] = buffers.keys[index].ctypes.data
    words[abi.VALUES] = buffers.values[index].ctypes.data
    words[abi.KEY_SCALES] = buffers.key_scales[index].ctypes.data
    words[abi.VALUE_SCALES] = buffers.value_scales[index].ctypes.data


def _make_context(
    bundle: Bundle,
    buffers: _Buffers,
    cosines: FloatArray,
    sines: FloatArray,
    n_threads: int,
    context_length: int,
) -> npt.NDArray[np.int64]:
    """The native code's context (`cpu_kernels.abi`), followed by what it points to: layers, embedding and head."""
    model = bundle.manifest.model
    layers_at = abi.CONTEXT_WORDS
    embed_at = layers_at + model.n_layers * abi.LAYER_WORDS
    head_at = embed_at + abi.LINEAR_WORDS
    context = np.zeros(head_at + abi.LINEAR_WORDS, np.int64)
    base = int(context.ctypes.data)
    context[abi.N_THREADS] = n_threads
    context[abi.N_LAYERS] = model.n_layers
    context[abi.HIDDEN_SIZE] = model.hidden_size
    context[abi.INTERMEDIATE_SIZE] = model.intermediate_size
    context[abi.N_HEADS] = model.n_heads
    context[abi.N_KV_HEADS] = model.n_kv_heads
    context[abi.HEAD_DIM] = model.head_dim
    context[abi.CONTEXT_LENGTH] = buffers.cache_length
    context[abi.EPS_BITS] = _float_bits(model.rms_norm_eps)
    context[abi.ATTENTION_SCALE_BITS] = _float_bits(1 / math.sqrt(model.head_dim))
    context[abi.SPIN_LIMIT] = SPIN_LIMIT
    context[abi.TOKENS] = buffers.tokens.ctypes.data
    context[abi.LAYERS] = base + 8 * layers_at
    context[abi.EMBED] = base + 8 * embed_at
    context[abi.HEAD] = base + 8 * (embed_at if model.tie_word_embeddings else head_at)
    context[abi.FINAL_NORM] = bundle.address(bundle.tensor("final_norm"))
    context[abi.COSINES] = cosines.ctypes.data
    context[abi.SINES] = sines.ctypes.data
    context[abi.RESIDUAL] = buffers.residual.ctypes.data
    context[abi.QKV] = buffers.qkv.ctypes.data
    context[abi.QKV_STRIDE] = buffers.qkv.shape[1]
    context[abi.GATED] = buffers.gated.ctypes.data
    context[abi.GATED_STRIDE] = buffers.gated.shape[1]
    context[abi.LOGITS] = buffers.logits.ctypes.data
    context[abi.LOGITS_STRIDE] = buffers.logits_stride
    context[abi.ROWS] = buffers.rows.ctypes.data
    context[abi.ROW_BYTES] = buffers.row_bytes
    context[abi.SCRATCH] = buffers.scratch.ctypes.data
    context[abi.SCRATCH_BYTES] = buffers.scratch_bytes
    context[abi.PARTIAL] = buffers.partial.ctypes.data
    context[abi.PARTIAL_STATE] = buffers.partial_state.ctypes.data
    context[abi.SYNC] = buffers.sync.ctypes.data
    for index in range(model.n_layers):
        start = layers_at + index * abi.LAYER_WORDS
        _write_layer(context[start : start + abi.LAYER_WORDS], bundle, buffers, index)
    _write_linear(context[embed_at:head_at], bundle, bundle.tensor("embed"), None)
    if not model.tie_word_embeddings:
        _write_linear(context[head_at:], bundle, bundle.tensor("head"), None)
    return context


def _start_threads(serve: Function, context: int, n_threads: int, keep: object) -> list[threading.Thread]:
    """Threads 1 … n_threads - 1; each stays in native code, without the GIL, until `edgeawq_stop`."""

    def run(thread: int, kept: object) -> None:
        serve(context, thread)

    threads = [threading.Thread(target=run, args=(index, keep), daemon=True) for index in range(1, n_threads)]
    for thread in threads:
        thread.start()
    return threads


def _stop_threads(stop: Function, context: int, threads: list[threading.Thread], keep: object) -> None:
    if threads:
        stop(context)
    for thread in threads:
        thread.join()
