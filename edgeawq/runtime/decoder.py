"""The decoder on the device: buffers, a KV cache and threads around one native function. Python touches no tensor."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cpu_kernels import abi
from edgeawq.errors import ContextFullError, GenerationError, UsageError
from edgeawq.runtime.bundle import Bundle, open_bundle
from edgeawq.runtime.cache_file import CacheLayout
from edgeawq.runtime.cpu import available_cpus
from edgeawq.runtime.decoder_memory import CACHE_DTYPES, Buffers, FloatArray, make_context, make_rotary_tables
from edgeawq.runtime.give_way import ThreadGovernor, make_delay_reader
from edgeawq.runtime.native import Function, NativeKernel, choose_kernel, load_object
from packager.manifest import ModelSpec

Activations = Literal["int8", "float"]

DEFAULT_CONTEXT_LENGTH = 4096  # tokens, where the model allows more: the cache of a small device is small
MAX_THREADS = abi.MAX_THREADS


class Decoder:
    """A model in memory with its KV cache. Not safe for use from several threads at once."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        n_threads: int,
        context_length: int,
        activations: Activations,
        kernel: NativeKernel | None = None,
        kv_bits: int = 0,
        give_way: bool = False,
    ) -> None:
        """Use `Decoder.open`. n_threads ≥ 1; context_length in tokens."""
        self.bundle = bundle
        self.config: ModelSpec = bundle.manifest.model
        self.context_length = context_length
        self.n_threads = n_threads
        self.activations: Activations = activations
        self.position = 0  # tokens in the KV cache
        if kernel is None:
            entry = choose_kernel(bundle.manifest.kernels)
            kernel = NativeKernel(entry.isa, bundle.kernel_object(entry))
        self.isa = kernel.isa
        self._native = load_object(kernel.native)
        self._step = self._native.function(f"edgeawq_step_{activations}", 1)
        elements = abi.CACHE_ELEMENTS[activations]
        self.kv_bits = kv_bits or next(iter(elements))
        self._cache_element = elements[self.kv_bits]
        self._buffers = Buffers(self.config, n_threads, context_length, CACHE_DTYPES[self._cache_element])
        self._cosines, self._sines = make_rotary_tables(bundle, context_length)
        self._context = make_context(bundle, self._buffers, self._cosines, self._sines, n_threads, self.kv_bits)
        self._context_address = int(self._context.ctypes.data)
        self._traces: list[npt.NDArray[np.int64]] = []
        serve = self._native.function(f"edgeawq_serve_{activations}", 2)
        stop = self._native.function("edgeawq_stop", 1)
        keep = (self._native, self._context, self._buffers, bundle, self._cosines, self._sines)
        threads = _start_threads(serve, self._context_address, n_threads, keep)
        self._governor: ThreadGovernor | None = None
        if give_way and n_threads > 1:
            thread_ids = [thread.native_id for thread in threads if thread.native_id is not None]
            self._governor = ThreadGovernor(n_threads, make_delay_reader(thread_ids))
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
        kernel: NativeKernel | None = None,
        kv_bits: int = 0,
        give_way: bool = False,
    ) -> Decoder:
        """Open the bundle in `folder`.

        n_threads: 0 takes every CPU this process may use. context_length: tokens; None takes the model's own, at most
        DEFAULT_CONTEXT_LENGTH. activations: "int8" (fast) or "float" (float32, to compare with).
        kv_bits: of the KV cache's elements, 16 or 8; 0 takes 16, and with float activations 32, the only choice.
        kernel: built for the layout of this bundle and for this machine; None takes the bundle's best one.
        give_way: steps of one token take fewer threads while that is faster (`edgeawq.runtime.give_way`).
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
        if kv_bits and kv_bits not in choices:
            raise UsageError(
                f"a KV cache of {kv_bits} bits is not possible with {activations} activations",
                remedy=f"use {' or '.join(map(str, choices))}",
            )
        return cls(
            bundle,
            n_threads=n_threads or min(available_cpus(), MAX_THREADS),
            context_length=context_length,
            activations=activations,
            kernel=kernel,
            kv_bits=kv_bits,
            give_way=give_way,
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

    def forward_draft(self, tokens: Sequence[int]) -> FloatArray:
        """Append at most `abi.MAX_TOKENS` tokens in one step and return the logits after each.

        Returns float32 [tokens, vocab_size], a view that is valid until the next call; each row has the very bits that
        `forward` gives for its token alone.
        Raises ContextFullError (nothing is changed then) or GenerationError.
        """
        ids = self._check(tokens)
        if len(ids) > abi.MAX_TOKENS:
            raise GenerationError(
                f"a draft of {len(ids)} tokens is longer than one step, {abi.MAX_TOKENS}", remedy="give fewer tokens"
            )
        self._buffers.grow_logits(len(ids))
        self._context[abi.LOGITS] = self._buffers.logits.ctypes.data
        self._run(ids, abi.LOGITS_ALL)
        logits: FloatArray = self._buffers.logits[: len(ids), : self.config.vocab_size]
        return logits

    def trace_into(self, trace: npt.NDArray[np.int64] | None) -> None:
        """Let each thread add up in `trace` where the time of its steps goes; None ends that.

        trace: int64 [n_threads, abi.TRACE_WORDS], contiguous; this keeps it alive. Kernels that were built before
        there was a trace leave it as it is.
        """
        if trace is not None and (trace.shape != (self.n_threads, abi.TRACE_WORDS) or not trace.flags.c_contiguous):
            raise GenerationError(
                f"a trace for {self.n_threads} threads has another shape", remedy="see cpu_kernels.abi"
            )
        self._context[abi.TRACE] = 0 if trace is None else trace.ctypes.data
        if trace is not None and not any(trace is kept for kept in self._traces):
            self._traces.append(trace)  # for good: a thread may still be writing its last mark

    def rewind(self, position: int) -> None:
        """Forget every token from `position` on."""
        if not 0 <= position <= self.position:
            raise GenerationError(
                f"cannot go back to token {position}: the cache holds {self.position}",
                remedy="start a new conversation",
            )
        self.position = position

    @property
    def cache_layout(self) -> CacheLayout:
        """What the KV cache holds for one token."""
        model = self.config
        return CacheLayout(self._cache_element, model.n_layers, model.n_kv_heads, model.head_dim)

    def export_layer(self, layer: int, count: int) -> npt.NDArray[Any]:
        """A copy of the first `count` positions of a layer: keys, then values, [2, kv heads, count, row_elements].

        The order does not depend on the instruction set. Keys are rotated to their positions. A row is head_dim
        elements; of an int8 cache the four bytes of the row's float32 scale follow.
        """
        if not 0 <= count <= self.position:
            raise GenerationError(f"the cache holds {self.position} tokens, not {count}", remedy="export fewer")
        layout, head_dim = self.cache_layout, self.config.head_dim
        keys, values = self._layer_views(layer)
        whole = np.empty((2, layout.n_kv_heads, count, layout.row_elements), keys.dtype)
        blocks = -(-count // abi.KV_BLOCK)
        # [heads, blocks, head_dim, KV_BLOCK] → [heads, blocks · KV_BLOCK, head_dim]
        rows = keys[:, :blocks].transpose(0, 1, 3, 2).reshape(layout.n_kv_heads, blocks * abi.KV_BLOCK, head_dim)
        whole[0, ..., :head_dim] = rows[:, :count]
        whole[1, ..., :head_dim] = values[:, :count]
        for half, scales in enumerate(self._layer_scales(layer)):
            whole[half, ..., head_dim:] = scales[:, :count, None].view(np.int8)
        return whole

    def import_layers(self, count: int, layers: Iterator[npt.NDArray[Any]]) -> None:
        """Fill the cache with what `export_layer` gave, layer by layer; it then holds `count` tokens.

        The cache is empty when an iterator fails on the way. Raises ContextFullError when `count` does not fit.
        """
        if count > self.context_length:
            raise ContextFullError(
                f"{count} tokens do not fit into a context of {self.context_length}",
                remedy="open the model with a larger --context-length",
            )
        self.position = 0
        blocks, head_dim = -(-count // abi.KV_BLOCK), self.config.head_dim
        for layer, whole in zip(range(self.config.n_layers), layers, strict=True):
            keys, values = self._layer_views(layer)
            padded = np.zeros((whole.shape[1], blocks * abi.KV_BLOCK, head_dim), keys.dtype)
            padded[:, :count] = whole[0, ..., :head_dim]
            keys[:, :blocks] = padded.reshape(-1, blocks, abi.KV_BLOCK, head_dim).transpose(0, 1, 3, 2)
            values[:, :count] = whole[1, ..., :head_dim]
            for half, scales in enumerate(self._layer_scales(layer)):
                scales[:, :count] = np.ascontiguousarray(whole[half, ..., head_dim:]).view(np.float32)[..., 0]
        self.position = count

    def _layer_views(self, layer: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Keys [kv heads, blocks, head_dim, KV_BLOCK] and values [kv heads, positions, head_dim] of a layer."""
        heads, head_dim = self.config.n_kv_heads, self.config.head_dim
        keys = self._buffers.keys[layer].reshape(heads, -1, head_dim, abi.KV_BLOCK)
        return keys, self._buffers.values[layer].reshape(heads, -1, head_dim)

    def _layer_scales(self, layer: int) -> tuple[FloatArray, ...]:
        """Scales of the keys and of the values, [kv heads, positions] each, where the cache is int8."""
        buffers = self._buffers
        return (buffers.key_scales[layer], buffers.value_scales[layer]) if self._cache_element == "i8" else ()

    @property
    def memory_bytes(self) -> int:
        """Bytes of mapped weights and of buffers (the KV cache counts whole; its unused part is never touched)."""
        return self.bundle.weights.nbytes + self._buffers.nbytes + self._cosines.nbytes + self._sines.nbytes

    @property
    def kv_cache_bytes_per_token(self) -> int:
        """Bytes that one more token of context takes."""
        return self.config.n_layers * self.cache_layout.layer_bytes_per_token

    @property
    def steps_with_fewer_threads(self) -> int:
        """Steps of one token that ran with fewer threads than there are, because that was faster."""
        return 0 if self._governor is None else self._governor.n_steps_fewer

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
        governor = self._governor if len(tokens) == 1 else None
        self._context[abi.N_THREADS] = self.n_threads if governor is None else governor.n_active
        start = time.perf_counter()
        self._step(self._context_address)
        if governor is not None:
            governor.note(time.perf_counter() - start)
        self.position += len(tokens)


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
