"""What happens in a call: which module is called with which shapes, and where attention is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sdtm_fx.capture.arguments import Signature

Shape = tuple[int, ...]
What = Literal["enter", "leave", "attention", "softmax", "product", "linear", "activation", "cat"]

_ACTIVATIONS = (
    F.gelu, F.silu, F.relu, F.leaky_relu, F.elu, F.mish, F.sigmoid, F.tanh, F.softplus, F.hardswish,
    torch.relu, torch.sigmoid, torch.tanh, torch.nn.functional.glu, torch._C._nn.gelu,
)  # fmt: skip
_PRODUCTS = (
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.bmm,
    torch.Tensor.bmm,
    torch.baddbmm,
    torch.einsum,
)
_SOFTMAX = (F.softmax, torch.softmax, torch.Tensor.softmax)


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        what: ``enter`` and ``leave`` a module, or an operation.
        path: The module, or the one in which the operation ran.
        shapes: Of what went in, by name or position, nested places with a dot: ``image_rotary_emb.0``.
        out: Of what came out, by index where it is a tuple.
        note: The axis of a ``cat``, counted from the front.
    """

    what: What
    path: str
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    out: Mapping[str, Shape] = field(default_factory=dict)
    note: int = 0


class Recorder(TorchFunctionMode):
    """Records the events of a model's calls inside its ``with`` block.

    Args:
        model: The model.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._modules = {path: module for path, module in model.named_modules()}
        self._paths = {id(module): path for path, module in self._modules.items()}
        self._signatures: dict[type, Signature | None] = {}
        self._stack: list[str] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Recorder:
        # Not global hooks: torch 2.13 forgets to take one with keyword arguments away whole, and torch.compile warns.
        for module in self._modules.values():
            self._handles += [
                module.register_forward_pre_hook(self._enter_module),
                module.register_forward_hook(self._leave_module, with_kwargs=True, always_call=True),
            ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        while self._handles:
            self._handles.pop().remove()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function and record it."""
        result = func(*args, **(kwargs or {}))
        what = _kind(func, args, kwargs or {})
        if what is not None and self._stack:
            operands = {**{str(i): a for i, a in enumerate(args)}, **(kwargs or {})}
            axis = _axis(args, kwargs or {}, result) if what == "cat" else 0
            self.events.append(
                Event(what, self._stack[-1], dict(_shapes(operands)), dict(_shapes({"": result})), axis)
            )
        return result

    def _enter_module(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        # What a module that is no part of the model does counts as done by the one that made it.
        self._stack.append(self._paths[id(module)])
        self.events.append(Event("enter", self._stack[-1]))

    def _leave_module(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        path = self._stack.pop()
        inputs = {**self._named(type(module), args), **kwargs}
        out = {"": output} if isinstance(output, torch.Tensor) else {"": list(_items(output))}
        self.events.append(Event("leave", path, dict(_shapes(inputs)), dict(_shapes(out))))

    def _named(self, kind: type, args: tuple[Any, ...]) -> dict[str, Any]:
        if kind not in self._signatures:
            self._signatures[kind] = Signature.of(kind.forward)  # type: ignore[attr-defined]
        signature = self._signatures[kind]
        names = signature.names if signature is not None else ()
        return {names[i] if i < len(names) else str(i): a for i, a in enumerate(args)}


def record(model: torch.nn.Module, arguments: Mapping[str, Any]) -> list[Event]:
    """The events of one call."""
    with torch.no_grad(), Recorder(model) as recorder:
        model(**arguments)
    return recorder.events


def _kind(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> What | None:
    if func is F.scaled_dot_product_attention:
        return "attention"
    if func in _SOFTMAX:
        return "softmax"
    if func in _PRODUCTS:
        return "product"
    if func in (F.linear, F.conv1d, F.conv2d, F.conv3d):
        return "linear"
    if func in (torch.cat, torch.concat):
        return "cat"
    return "activation" if func in _ACTIVATIONS else None


def _axis(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    return int(axis) % result.ndim


def _shapes(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Shape]]:
    for name, value in values.items():
        place = ".".join(filter(None, (prefix, name)))
        if isinstance(value, torch.Tensor):
            yield place, tuple(value.shape)
        elif isinstance(value, list | tuple):
            yield from _shapes({str(i): v for i, v in enumerate(value)}, place)
        elif isinstance(value, dict):
            yield from _shapes({str(k): v for k, v in value.items()}, place)


def _items(output: Any) -> Iterator[Any]:
    if isinstance(output, list | tuple):
        yield from output
    elif isinstance(output, dict):
        yield from output.values()
