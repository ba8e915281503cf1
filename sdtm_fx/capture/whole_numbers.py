"""Whole numbers whose values are known while all else is shapes: forwards may read lengths of prompts on the host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_VALUES = "sdtm_fx_values"
_READ = torch.ops.aten._local_scalar_dense.default


def whole_ones(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return int64 ones whose values are known, also where a fake mode makes them.

    Args:
        shape: Its shape.
        device: Its device.
    """
    ones = torch.ones(shape, dtype=torch.int64, device=device)
    if isinstance(ones, FakeTensor):
        with unset_fake_temporarily():
            setattr(ones, _VALUES, torch.ones(shape, dtype=torch.int64))
    return ones


class WholeNumbersKnown(TorchDispatchMode):
    """Follows `whole_ones` through what is computed of them alone; entered inside of a fake mode.

    Every result is fake as without this mode. Beside it the same is computed for real on the CPU, so that
    ``mask.sum(1).tolist()`` gives numbers. Numbers that anything else is written into are not known any more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._spoilt: list[torch.UntypedStorage] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, keywords)) if isinstance(leaf, torch.Tensor)]
        if not tensors or not all(map(self._is_known, tensors)):
            if func._schema.is_mutable:  # type: ignore[attr-defined]
                self._spoilt += [_values(t).untyped_storage() for t in tensors if hasattr(t, _VALUES)]
            return func(*args, **keywords)
        real_args, real_keywords = tree_map(_real, (args, keywords))
        with unset_fake_temporarily():
            values = func(*real_args, **real_keywords)
        if func is _READ:
            return values
        results = func(*args, **keywords)
        for result, value in zip(tree_leaves(results), tree_leaves(values), strict=True):
            if isinstance(value, torch.Tensor) and not value.is_floating_point():
                setattr(result, _VALUES, value)
        return results

    def _is_known(self, tensor: torch.Tensor) -> bool:
        if not hasattr(tensor, _VALUES):
            return False
        held = _values(tensor).untyped_storage().data_ptr()
        return all(storage.data_ptr() != held for storage in self._spoilt)


def following(leaves: Iterable[object]) -> contextlib.AbstractContextManager[object]:
    """Follow the whole numbers among the values of a call; where there are none, nothing has to be looked at.

    Args:
        leaves: The values, made within a fake mode.
    """
    return WholeNumbersKnown() if any(hasattr(leaf, _VALUES) for leaf in leaves) else contextlib.nullcontext()


@contextlib.contextmanager
def shapes_alone() -> Iterator[FakeTensorMode]:
    """Compute nothing but shapes, and the whole numbers that are known."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, WholeNumbersKnown():
        yield mode


def _values(tensor: torch.Tensor) -> torch.Tensor:
    values: torch.Tensor = getattr(tensor, _VALUES)
    return values


def _real(leaf: Any) -> Any:
    """What stands for an argument where values are computed."""
    if isinstance(leaf, torch.device):
        return torch.device("cpu")
    return _values(leaf) if isinstance(leaf, torch.Tensor) else leaf
