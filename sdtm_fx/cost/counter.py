"""Counting multiply-accumulates while code runs, on real or fake tensors.

torch's own flop counter sees operations after decomposition, where a linear layer on a strided input and
attention proper are both a batched product; the paper's convention needs them apart. This one looks at the
functions that modules call.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from sdtm_fx.capture.proxy import value_of


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates, counted twice.

    Attributes:
        linear: Linear layers and convolutions only, the convention of the SDTM paper.
        total: All of them, attention and the search for tokens to merge included.
    """

    linear: float = 0.0
    total: float = 0.0

    @property
    def attention(self) -> float:
        """Everything that is not a linear layer."""
        return self.total - self.linear

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.linear + other.linear, self.total + other.total)

    def __sub__(self, other: Macs) -> Macs:
        return Macs(self.linear - other.linear, self.total - other.total)

    def __mul__(self, factor: float) -> Macs:
        return Macs(self.linear * factor, self.total * factor)


@dataclass(frozen=True)
class Attended:
    """One call of attention.

    Attributes:
        macs: Multiply-accumulates, QKᵀ and AV.
        queries: Length of the queries.
        keys: Length of the keys.
        inside: Names of the watched modules that it ran in.
    """

    macs: float
    queries: int
    keys: int
    inside: tuple[str, ...]


_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_PRODUCTS = (
    torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__,
    torch.bmm, torch.Tensor.bmm, torch.mm, torch.Tensor.mm,
)  # fmt: skip
_EIGENVALUES = 5.5
"""MACs over n^3 of a symmetric pseudo-inverse: eigenvalues and vectors take 4.5 (9 n^3 operations by Golub and Van
Loan's count), and the product that puts them together takes one."""
_ADDED_PRODUCTS = (torch.baddbmm, torch.Tensor.baddbmm, torch.addmm, torch.Tensor.addmm)


class MacCounter(TorchFunctionMode):
    """Counts what runs inside its ``with`` block.

    Attributes:
        macs: All that was counted.
        inside: What was counted during calls of the modules given to `watching`, by their name.
        rows: MACs of linear layers by the length of the sequence that they ran on, 0 for what has none (a
            modulation, [B, C]); for all (None) and by name.
        attended: The calls of attention, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = Macs()
        self.inside: dict[str, Macs] = {}
        self.rows: dict[str | None, Counter[int]] = defaultdict(Counter)
        self.attended: list[Attended] = []
        self._open: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function and count it."""
        result = func(*args, **(kwargs or {}))
        # Under a tracer, what is counted is the values that proxies carry.
        value = value_of(result)
        plain, named = value_of(args), value_of(dict(kwargs or {}))
        macs = _count(func, plain, named, value)
        self._add(macs)
        if func is F.scaled_dot_product_attention:
            queries, keys = (_sequence(plain, named, i, n) for i, n in enumerate(("query", "key")))
            self.attended.append(Attended(macs.total, queries, keys, tuple(self._open)))
        if macs.linear:
            for name in (None, *self._open):
                self.rows[name][value.shape[-2] if value.ndim > 2 else 0] += int(macs.linear)
        return result

    @contextlib.contextmanager
    def watching(self, modules: Mapping[str, torch.nn.Module]) -> Iterator[None]:
        """Count separately what runs inside some modules, while the block lasts."""
        names = {id(module): name for name, module in modules.items()}
        self.inside.update(dict.fromkeys(modules, Macs()))

        def enter(module: torch.nn.Module, *_: Any) -> None:
            if id(module) in names:
                self._open.append(names[id(module)])

        def leave(module: torch.nn.Module, *_: Any) -> None:
            if id(module) in names:
                self._open.pop()

        # Hooks on the modules themselves are out of the way while a model is traced.
        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, macs: Macs) -> None:
        self.macs = self.macs + macs
        for name in self._open:
            self.inside[name] = self.inside[name] + macs


def _count(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Macs:
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
    if func is F.linear:
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        macs = result.numel() * weight.shape[-1]
        return Macs(macs, macs)
    if func in _CONVOLUTIONS:
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        macs = result.numel() * weight[0].numel()
        return Macs(macs, macs)
    if func is F.scaled_dot_product_attention:
        query = args[0] if args else kwargs["query"]
        key = args[1] if len(args) > 1 else kwargs["key"]
        return Macs(0.0, (query.numel() + result.numel()) * key.shape[-2])
    if func in _PRODUCTS:
        return Macs(0.0, result.numel() * tensors[0].shape[-1])
    if func in _ADDED_PRODUCTS:
        return Macs(0.0, result.numel() * tensors[1].shape[-1])
    if func is torch.linalg.pinv:
        return Macs(0.0, _EIGENVALUES * args[0].numel() * args[0].shape[-1])
    if func is torch.einsum:
        return Macs(0.0, _einsum(args[0], tensors or list(args[1])))
    return Macs()


def _sequence(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> int:
    """The length of queries or keys."""
    operand = args[position] if position < len(args) else kwargs[name]
    return int(operand.shape[-2])


def _einsum(equation: str, operands: list[torch.Tensor]) -> float:
    """The product of all sizes that occur in a contraction of two tensors or more."""
    if len(operands) < 2:
        return 0.0  # a permutation
    sizes: dict[str, int] = {}
    for term, tensor in zip(equation.replace(" ", "").split("->")[0].split(","), operands, strict=True):
        head, _, tail = term.partition("...")
        batch = tensor.shape[len(head) : tensor.ndim - len(tail)]
        # Axes behind an ellipsis are aligned from the right, as broadcasting aligns them.
        names = [*head, *(f"...{i}" for i in range(len(batch), 0, -1)), *tail]
        for name, size in zip(names, tensor.shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    return float(math.prod(sizes.values()))
