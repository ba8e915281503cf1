"""Attributes that a forward sets while it is traced: the model keeps its own."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_ABSENT = object()


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Take back what is assigned to attributes of a model, its modules and their plain helpers inside the block.

    Models make tables on their first call and keep them. In a trace these would be proxies, or fake tensors.
    """
    before = [(attributes, dict(attributes)) for attributes in _attributes(model)]
    try:
        yield
    finally:
        for attributes, old in before:
            for name in [*attributes]:
                if attributes[name] is not old.get(name, _ABSENT):
                    del attributes[name]
            for name, value in old.items():
                attributes.setdefault(name, value)


def _attributes(model: nn.Module) -> Iterator[dict[str, Any]]:
    for module in model.modules():
        yield vars(module)
        yield from (vars(value) for value in vars(module).values() if _is_helper(value))


def _is_helper(value: object) -> bool:
    """Whether a value is an object of a plain class, with attributes of its own."""
    known = nn.Module | torch.Tensor | type | types.FunctionType | types.MethodType | types.ModuleType
    return not isinstance(value, known) and isinstance(getattr(value, "__dict__", None), dict)
