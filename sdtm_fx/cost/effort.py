"""What code asks of a device: products, bytes, sorted elements and launches, counted while it runs.

Counted below the level of modules, one entry per operation that an eager device would start, on real or fake
tensors. Products come from `MacCounter`, which tells linear layers and attention apart.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdtm_fx.cost.counter import MacCounter


@dataclass(frozen=True)
class Effort:
    """Work by the part of a device that it keeps busy.

    Attributes:
        linear: MACs of linear layers and convolutions.
        attention: MACs of attention and of the search for tokens to merge.
        streamed: Bytes read and written in order: additions, norms, copies.
        gathered: Bytes moved row by row, by index.
        activated: Elements that go through an activation function.
        sorted: Elements sorted or ranked, times the binary logarithm of the length of a row.
        launches: Operations started.
    """

    linear: float = 0.0
    attention: float = 0.0
    streamed: float = 0.0
    gathered: float = 0.0
    activated: float = 0.0
    sorted: float = 0.0
    launches: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        return Effort(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Effort) -> Effort:
        return Effort(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> Effort:
        return Effort(*(value * factor for value in astuple(self)))


_PRODUCTS = {
    "mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable",
}  # fmt: skip
_SORTS = {"sort", "topk", "kthvalue"}
_ACTIVATIONS = {"gelu", "silu", "tanh", "sigmoid", "exp", "mish", "_softmax", "_safe_softmax"}
_GATHERS = {"index_select", "gather", "index", "embedding"}
_SCATTERS = {
    "scatter",
    "scatter_",
    "index_put",
    "index_put_",
    "index_add",
    "index_add_",
    "scatter_add",
    "scatter_add_",
}
_FREE = {"_unsafe_view", "empty", "empty_strided", "new_empty", "empty_like", "_local_scalar_dense"}


class _Operations(TorchDispatchMode):
    """Counts everything but products."""

    def __init__(self) -> None:
        super().__init__()
        self.effort = Effort()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count it."""
        result = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not _is_view(func):
            given = [v for v in tree_leaves((args, kwargs or {})) if isinstance(v, torch.Tensor)]
            made = [v for v in tree_leaves(result) if isinstance(v, torch.Tensor)]
            self.effort = self.effort + _operation(func.overloadpacket.__name__, given, made)
        return result


class EffortCounter:
    """Counts what runs inside its `counting` block.

    Attributes:
        products: The counter of products.
    """

    def __init__(self) -> None:
        self.products, self._operations = MacCounter(), _Operations()

    @property
    def effort(self) -> Effort:
        """All that was counted."""
        macs = self.products.macs
        return self._operations.effort + Effort(linear=macs.linear, attention=macs.attention)

    @contextlib.contextmanager
    def counting(self, products_only: bool = False) -> Iterator[EffortCounter]:
        """Count while the block lasts; enter it inside of a fake mode, if there is one.

        Args:
            products_only: Leave out all but products, which takes half the time.
        """
        with contextlib.nullcontext() if products_only else self._operations, self.products:
            yield self


def _is_view(func: Any) -> bool:
    """Whether an operation returns its argument under another shape, and moves nothing."""
    returned = [value.alias_info for value in func._schema.returns]
    return func.overloadpacket.__name__ in _FREE or (
        bool(returned) and all(alias is not None and not alias.is_write for alias in returned)
    )


def _operation(name: str, given: list[torch.Tensor], made: list[torch.Tensor]) -> Effort:
    if name in _PRODUCTS:
        return Effort(launches=1)
    if name in _SORTS:
        row = given[0].shape[-1] if given[0].ndim else 1
        return Effort(sorted=given[0].numel() * math.log2(max(row, 2)), launches=1)
    if name == "searchsorted":
        row = given[0].shape[-1]
        return Effort(sorted=given[1].numel() * math.log2(max(row, 2)), launches=1)
    if name in _ACTIVATIONS:
        return Effort(activated=float(given[0].numel()), launches=1)
    if name in _GATHERS:
        return Effort(gathered=2 * _bytes(made) + _bytes(given[1:]), launches=1)
    if name in _SCATTERS:
        return Effort(gathered=2 * _bytes(given[1:]), launches=1)
    if name.startswith("_embedding_bag"):
        return Effort(gathered=_bytes(given) + _bytes(made[:1]), launches=1)
    return Effort(streamed=_bytes(given) + _bytes(made), launches=1)


def _bytes(tensors: list[torch.Tensor]) -> float:
    return float(sum(t.numel() * t.element_size() for t in tensors))
