"""The proxy of the tracer: it records operations, and carries the value that each would have."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from sdtm_fx.capture.tracer import BlockTracer

# Attributes that a trace may read as plain Python: a capture is keyed on them (see `arguments`).
_CONCRETE = frozenset({"dtype", "ndim", "layout"})


class ValueProxy(fx.Proxy):
    """A proxy that knows the example value of its node.

    Dtype and rank are concrete. Sizes are recorded as nodes, so that a graph holds at every batch and
    resolution; so is the device, since models move. A branch on a value (``if x.shape[1] > 512``) is
    taken as the example says and recorded as a guard.
    """

    tracer: BlockTracer

    def __init__(self, node: fx.Node, tracer: BlockTracer, value: Any) -> None:
        super().__init__(node, tracer)
        self.__dict__["value"] = value

    def __getattr__(self, name: str) -> Any:
        if name in _CONCRETE and isinstance(self.value, torch.Tensor):
            return getattr(self.value, name)
        return AttributeProxy(self, name)

    @property
    def shape(self) -> Any:
        """The sizes of a tensor, each as a recorded node."""
        if not isinstance(self.value, torch.Tensor):
            return AttributeProxy(self, "shape")
        return tuple(self.size(i) for i in range(self.value.ndim))

    def size(self, dim: int | None = None) -> Any:
        """One size, or all of them, as recorded nodes."""
        if dim is None:
            return self.shape
        return self.tracer.create_proxy("call_method", "size", (self, dim), {})

    def dim(self) -> int:
        """The rank, concrete."""
        return int(self.value.dim())

    def __getitem__(self, key: Any) -> Any:
        if _is_container(self.value) and isinstance(key, int | str):
            item = self.value[key]
            if item is None or isinstance(item, str | bool):
                return item
        return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})

    def __setitem__(self, key: Any, item: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, item), {})

    def __iter__(self) -> Any:
        return iter([self[i] for i in range(len(self.value))])

    def __len__(self) -> int:
        return len(self.value)

    def __contains__(self, key: Any) -> bool:
        return key in self.value

    def get(self, key: Any, default: Any = None) -> Any:
        """``dict.get`` on a carried mapping."""
        return self[key] if key in self.value else default

    def keys(self) -> Any:
        """The keys of a carried mapping, concrete."""
        return self.value.keys()

    def items(self) -> list[tuple[Any, Any]]:
        """The items of a carried mapping, values as proxies."""
        return [(k, self[k]) for k in self.value]

    def __bool__(self) -> bool:
        return bool(self.tracer.guard(self, bool))

    def __int__(self) -> int:
        return int(self.tracer.guard(self, int))

    __index__ = __int__

    def __float__(self) -> float:
        return float(self.tracer.guard(self, float))

    def __hash__(self) -> int:
        """A number in a set, or as a key, is as the example says, and a guard; anything else is itself alone."""
        if isinstance(self.value, int | float):
            return hash(self.tracer.guard(self, type(self.value)))
        return super().__hash__()

    def __format__(self, form: str) -> str:
        """A number in text (the key of a module, ``f"{patch_size}"``) is as the example says, and a guard."""
        if isinstance(self.value, int | float):
            return format(self.tracer.guard(self, type(self.value)), form)
        return super().__format__(form)


class AttributeProxy(ValueProxy):
    """``proxy.name``: a method about to be called, or an attribute that becomes a node when used."""

    def __init__(self, root: ValueProxy, name: str) -> None:
        self.__dict__.update(
            root=root, name=name, tracer=root.tracer, value=getattr(root.value, name), _node=None
        )

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """The ``getattr`` node, made on first use."""
        if self._node is None:
            proxy = self.tracer.create_proxy("call_function", getattr, (self.root, self.name), {})
            self.__dict__["_node"] = proxy.node
        return self.__dict__["_node"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Record the call of a method."""
        return self.tracer.create_proxy("call_method", self.name, (self.root, *args), kwargs)


def _is_container(value: Any) -> bool:
    return isinstance(value, tuple | list | dict)


def value_of(argument: Any) -> Any:
    """Replace every proxy in an argument (nested in tuples, lists, dicts, slices) by its value."""
    if isinstance(argument, ValueProxy):
        return argument.value
    if isinstance(argument, tuple) and hasattr(argument, "_fields"):
        return type(argument)(*(value_of(a) for a in argument))
    if isinstance(argument, tuple | list):
        return type(argument)(value_of(a) for a in argument)
    if isinstance(argument, dict):
        return {k: value_of(v) for k, v in argument.items()}
    if isinstance(argument, slice):
        return slice(value_of(argument.start), value_of(argument.stop), value_of(argument.step))
    return argument
