"""A second device for machines without one: its tensors compute on the processor, but mix with no others.

Every tensor there is a wrapper around an ordinary one that claims to lie on another device. As on a real one, an
operation on tensors of both places fails, and so does `numpy()`; `to` and `cpu` move. Factories with `device=` make
wrappers where `PretendDevice` is active, which is one thread only: `start_inline_workers` computes in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from edgeawq.quantize.parallel import Workers

# The name of a device that torch knows and this build cannot use; its gradients are computed in the calling thread.
ELSEWHERE = torch.device("lazy", 0)


class Elsewhere(torch.Tensor):
    """A tensor on the pretended device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=ELSEWHERE,
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_operation(func, args, kwargs or {})


class PretendDevice(TorchDispatchMode):
    """While it is active, factories make tensors on the pretended device where they are asked to."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_operation(func, args, kwargs or {})


def run_operation(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation of torch, on the processor; its results lie where the arguments do, or where they are sent."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    is_there = any(isinstance(tensor, Elsewhere) for tensor in tensors)
    name = str(func)
    # As on CUDA: single numbers and indices may lie anywhere, and copying is what goes from one place to the other.
    moves = "_to_copy" in name or "copy_" in name or "index" in name
    if is_there and not moves and any(tensor.ndim and not isinstance(tensor, Elsewhere) for tensor in tensors):
        raise RuntimeError(f"{name}: tensors on two devices")
    if kwargs.get("device") is not None:
        is_there = torch.device(kwargs["device"]) == ELSEWHERE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    given = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, Elsewhere)}
    args, kwargs = tree_map(lambda leaf: leaf.inner if isinstance(leaf, Elsewhere) else leaf, (args, kwargs))
    found = func(*args, **kwargs)
    if not is_there:
        return found

    def wrap(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        # What was changed in place is the tensor that was given.
        return given[id(leaf)] if id(leaf) in given else Elsewhere(leaf)

    return tree_map(wrap, found)


class InlineWorkers(Workers):
    """Workers without threads."""

    def run(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """function(item) for every item, one after another."""
        with torch.no_grad():
            return [function(item) for item in items]


@contextmanager
def start_inline_workers(count: int = 0, device: torch.device | None = None) -> Iterator[Workers]:
    """Stands for `start_workers`."""
    with ThreadPoolExecutor(1) as pool:
        yield InlineWorkers(pool, count or 1, device or torch.device("cpu"))
