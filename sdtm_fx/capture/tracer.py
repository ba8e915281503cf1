"""The tracer: records one module's forward as a graph whose leaves are the modules that it calls."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import fx

from sdtm_fx.capture.arguments import Key, Leaf, Signature, leaf_names, unflatten
from sdtm_fx.capture.guards import expect
from sdtm_fx.capture.proxy import ValueProxy, value_of
from sdtm_fx.errors import CaptureError

# Functions that make tensors out of no tensor: recorded, so that no constant is baked into a graph.
_FACTORIES = (
    "ones", "zeros", "full", "empty", "arange", "tensor", "linspace", "randn", "rand", "as_tensor",
    "ones_like", "zeros_like", "full_like", "empty_like", "stack", "cat", "concat",
)  # fmt: skip


@dataclass(frozen=True)
class Capture:
    """One module as a graph.

    Attributes:
        graph: Placeholders are the leaves of the call (`arguments.flatten`); every call node carries its
            example value in ``meta["val"]``.
        key: Structure of the call that was traced.
        guards: How many assumptions on values the graph checks.
        calls: For each leaf module call: the node, and its arguments with example values.
    """

    graph: fx.Graph
    key: Key
    guards: int
    calls: dict[fx.Node, tuple[tuple[Any, ...], dict[str, Any]]] = field(repr=False)


class BlockTracer(fx.Tracer):
    """A value-carrying tracer.

    Every recorded operation is also run on example values (fake tensors will do), so forwards may ask
    for ``ndim``, iterate over tuples, build tensors and branch. Modules are leaves, unless `opened`.

    Args:
        opened: Paths, relative to the traced module, of submodules to trace through.
        opaque: Functions to record as one node instead of tracing through them.
        constants: Whether tensors that are neither parameters nor buffers may stand in the graph, such as tables that a
            model keeps from an earlier call. It then describes a forward, and cannot be run in its place.
    """

    def __init__(
        self,
        opened: Collection[str] = (),
        opaque: Collection[Callable[..., Any]] = (),
        constants: bool = False,
    ) -> None:
        super().__init__()
        self.opened = frozenset(opened)
        self.opaque = tuple(opaque)
        self.constants = constants
        self._held: dict[str, torch.Tensor] = {}
        self.guards = 0
        self.calls: dict[fx.Node, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._depth = 0  # > 0 while values are computed: nothing is recorded then

    def capture(self, module: torch.nn.Module, key: Key, leaves: list[Leaf]) -> Capture:
        """Trace ``type(module).forward`` for one call.

        Args:
            module: The module; it is not changed.
            key: Structure of the call, from `arguments.flatten`.
            leaves: Example values of the placeholders.

        Raises:
            CaptureError: The forward does something that a graph cannot hold; names the place.
        """
        self.root = module
        self.graph = fx.Graph(tracer_cls=type(self))
        self._paths = {id(m): name for name, m in module.named_modules()}
        self._tensors = {id(t): name for name, t in _named_tensors(module)}
        forward = inspect.unwrap(type(module).forward)
        examples = dict(zip(leaf_names(key), leaves, strict=True))
        self._examples = examples
        try:
            with self._recording():
                proxies = [self.create_proxy("placeholder", name, (), {}) for name in examples]
                args, kwargs = Signature.of(forward).spread(unflatten(key, iter(proxies)))
                result = forward(module, *args, **kwargs)
                self.create_node("output", "output", (self.create_arg(result),), {})
        except CaptureError:
            raise
        except Exception as error:
            where = next((n for n in reversed(list(self.graph.nodes))), None)
            raise CaptureError(
                f"{type(module).__name__}.forward cannot be traced: {type(error).__name__}: {error} "
                f"(after node {where.format_node() if where else 'none'})"
            ) from error
        self.graph.lint()
        return Capture(self.graph, key, self.guards, self.calls)

    # -- what fx asks of a tracer ---------------------------------------------------------------

    def create_proxy(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *_: Any, **__: Any
    ) -> ValueProxy:
        """Record a node and compute its example value."""
        with self._not_recording():
            value = self._evaluate(kind, target, value_of(args), value_of(kwargs))
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs))
        node.meta["val"] = value
        return ValueProxy(node, self, value)

    def proxy(self, node: fx.Node) -> ValueProxy:
        """Wrap a node made by fx itself."""
        return ValueProxy(node, self, node.meta.get("val"))

    def create_arg(self, a: Any) -> Any:
        """Turn an argument into what a node may hold; parameters become ``get_attr`` nodes."""
        if isinstance(a, torch.Tensor):
            return self._tensor_proxy(a).node
        return super().create_arg(a)

    def guard(self, proxy: ValueProxy, kind: Callable[[Any], Any]) -> Any:
        """Make a value concrete, and record that the graph relies on it."""
        expected = kind(proxy.value)
        self.guards += 1
        checked = self.create_node("call_function", kind, (proxy.node,), {})
        checked.meta["val"] = expected
        self.create_node("call_function", expect, (checked, expected), {})
        return expected

    # -- modules ---------------------------------------------------------------------------------

    def _call_module(
        self,
        module: torch.nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        path = self._paths.get(id(module))
        if path is None:
            raise CaptureError(
                f"{type(module).__name__} is called but is not part of {type(self.root).__name__}"
            )
        if path in self.opened:
            return inspect.unwrap(type(module).forward)(module, *args, **kwargs)
        values, keywords = value_of(args), value_of(kwargs)
        with self._not_recording():
            value = forward(*values, **keywords)
        node = self.create_node("call_module", path, self.create_arg(args), self.create_arg(kwargs))
        node.meta["val"] = value
        self.calls[node] = (values, keywords)
        return ValueProxy(node, self, value)

    def _tensor_proxy(self, tensor: torch.Tensor) -> ValueProxy:
        name = self._tensors.get(id(tensor))
        if name is None and self.constants:
            name = self._tensors[id(tensor)] = f"constant_{len(self._held)}"
            self._held[name] = tensor
        if name is None:
            raise CaptureError(
                f"{type(self.root).__name__}.forward makes a constant tensor of shape {tuple(tensor.shape)} "
                "that is neither a parameter nor a buffer; it would be frozen into the graph"
            )
        return self.create_proxy("get_attr", name, (), {})

    def _evaluate(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self._examples[target]
        if kind == "get_attr" and target in self._held:
            return self._held[target]
        if kind == "get_attr":
            return functools.reduce(getattr, target.split("."), self.root)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    # -- patches ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _not_recording(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        """Send module calls, parameter reads and tensor factories to this tracer."""
        call, getattribute, is_tensor = torch.nn.Module.__call__, torch.nn.Module.__getattr__, torch.is_tensor

        def traced_call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            run = functools.partial(call, module)
            return run(*args, **kwargs) if self._depth else self._call_module(module, run, args, kwargs)

        def traced_getattr(module: torch.nn.Module, name: str) -> Any:
            value = getattribute(module, name)
            if self._depth or not isinstance(value, torch.Tensor) or id(value) not in self._tensors:
                return value
            return self._tensor_proxy(value)

        with contextlib.ExitStack() as patches:
            # Making a computed weight (old-style weight norm) fake reads its .grad inside torch.
            patches.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            enter = lambda owner, name, new: patches.enter_context(mock.patch.object(owner, name, new))  # noqa: E731
            enter(torch.nn.Module, "__call__", traced_call)
            enter(torch.nn.Module, "__getattr__", traced_getattr)
            enter(torch, "is_tensor", lambda x: is_tensor(getattr(x, "value", x)))
            for name in _FACTORIES:
                enter(torch, name, self._recorded(getattr(torch, name)))
            for function in self.opaque:
                for namespace in _homes_of(function):
                    enter(namespace, function.__name__, self._recorded(function))
            yield

    def _recorded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def record(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return function(*args, **kwargs)
            return self.create_proxy("call_function", function, args, kwargs)

        return record


def _named_tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _homes_of(function: Callable[..., Any]) -> list[Any]:
    """The loaded modules that hold `function` under its own name."""
    name = function.__name__
    return [m for m in list(sys.modules.values()) if getattr(m, "__dict__", {}).get(name) is function]
