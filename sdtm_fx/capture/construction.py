"""What a module is made of, as a value: modules of equal construction run the same code on equal arguments.

A forward can only look at its class, at what hangs on the module, and at its arguments. Where all of it is equal, one
trace serves several blocks, and a model of 57 blocks is traced as quickly as one of two.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from sdtm_fx.capture.arguments import Leaf

_PLAIN = (int, float, complex, str, bytes, bool, types.NoneType, torch.dtype, torch.device, torch.Size)
_TENSORS = (torch.Tensor, FakeTensor, torch.nn.Parameter, torch.nn.Buffer)
_CODE = (type, types.FunctionType, types.BuiltinFunctionType)


class _Unknown(Exception):
    """Something hangs on a module that cannot be compared."""


def construction(module: torch.nn.Module) -> Hashable | None:
    """Describe a module without the values of its weights.

    Args:
        module: The module.

    Returns:
        Its class, its attributes, and the same of all that hangs on it: of parameters and buffers type, shape, strides,
        dtype and device, and which of them are one. None where something cannot be compared: a closure that keeps
        state in C, a quantized weight, a tensor that is neither parameter nor buffer.
    """
    try:
        return _Description().of(module)
    except _Unknown:
        return None


def leaf_construction(leaves: Sequence[Leaf]) -> Hashable | None:
    """Describe example arguments in the same way: all of a tensor but its values, and numbers as they are.

    Args:
        leaves: Example arguments.

    Returns:
        The description, None where a size is symbolic.
    """
    description = _Description()
    try:
        return tuple(
            description.tensor(leaf) if isinstance(leaf, torch.Tensor) else description.of(leaf)
            for leaf in leaves
        )
    except _Unknown:
        return None


class _Description:
    """One walk over a module; what is met again is told by the number under which it was met first."""

    def __init__(self) -> None:
        self.met: dict[int, int] = {}

    def of(self, value: Any) -> Hashable:
        if type(value) in _PLAIN or isinstance(value, enum.Enum):
            return type(value), repr(value)  # -0.0 equals 0.0, and nan not itself
        if isinstance(value, _CODE):
            return value
        if isinstance(value, types.MethodType):
            return value.__func__, self.of(value.__self__)
        if id(value) in self.met:
            return "met", self.met[id(value)]
        self.met[id(value)] = len(self.met)
        if isinstance(value, torch.nn.Module):
            return self._module(value)
        if isinstance(value, (tuple, list)):
            return type(value), tuple(map(self.of, value)), self._attributes(value)
        if isinstance(value, dict):
            return type(value), self._items(value), self._attributes(value)
        if type(value) in (set, frozenset) and all(type(one) in _PLAIN for one in value):
            return type(value), tuple(sorted(map(repr, value)))
        made_by: object = type(value).__new__
        if made_by is object.__new__ and hasattr(
            value, "__dict__"
        ):  # a class in Python: all state is in there
            return type(value), self._attributes(value)
        raise _Unknown

    def tensor(self, value: torch.Tensor) -> Hashable:
        """A tensor whose values do not matter."""
        if id(value) in self.met:
            return "met", self.met[id(value)]
        self.met[id(value)] = len(self.met)
        if value.layout is not torch.strided or any(type(size) is not int for size in value.shape):
            raise _Unknown
        if type(value) not in _TENSORS:  # a quantized one holds more than it shows
            raise _Unknown
        device = value.fake_device if isinstance(value, FakeTensor) else value.device
        return type(value), tuple(value.shape), value.stride(), value.dtype, device, value.requires_grad

    def _module(self, module: torch.nn.Module) -> Hashable:
        held = ("_parameters", "_buffers")
        tensors = tuple(
            (name, None if value is None else self.tensor(value))
            for group in held
            for name, value in module.__dict__[group].items()
        )
        others = {name: value for name, value in module.__dict__.items() if name not in held}
        return type(module), tensors, self._items(others)

    def _items(self, value: dict[Any, Any]) -> Hashable:
        return tuple((self.of(name), self.of(one)) for name, one in value.items())

    def _attributes(self, value: Any) -> Hashable:
        return self._items(getattr(value, "__dict__", {}))
