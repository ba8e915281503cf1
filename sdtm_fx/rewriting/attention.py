"""Looking into an attention module: its own graph, its attention operation, and where the image tokens are in it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from sdtm_fx.capture.arguments import Signature, flatten, pick_leaves
from sdtm_fx.capture.blocks import capture_block
from sdtm_fx.capture.tracer import Capture
from sdtm_fx.errors import SiteError

_PRODUCTS = (torch.matmul, torch.bmm, operator.matmul)


@dataclass(frozen=True)
class AttentionGraph:
    """An attention module as a graph of its own.

    Attributes:
        graph: The graph; its placeholders are the leaves of the call.
        module: The attention module.
        arguments: The nodes of the block graph that are passed for the placeholders.
        operation: The node that computes attention.
        query: Its query, [B, H, L, d] or [B, L, H, d], or [B * H, L, d] where heads are folded into the batch.
        key: Its key, alike.
        value: Its value, alike.
        sequence: The axis of L in all three.
        entry: The placeholder that carries the site's tokens.
    """

    graph: fx.Graph
    module: torch.nn.Module
    arguments: list[Any]
    operation: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    sequence: int
    entry: fx.Node


def open_attention(call: fx.Node, module: torch.nn.Module, slot: int | str, where: str) -> AttentionGraph:
    """Trace an attention module as it is called in a block graph.

    Args:
        call: The call of the module, arguments with example values.
        module: The module.
        slot: Where the tokens stand in the call.
        where: The site, for messages.

    Raises:
        SiteError: The module does not hold exactly one attention operation.
    """
    signature = Signature.of(type(module).forward)
    bound = signature.bind(call.args, call.kwargs)
    capture = _capture_call(bound, module)
    operations = [n for n in capture.graph.nodes if _is_attention(n)]
    if len(operations) != 1:
        raise SiteError(
            f"{where}: {type(module).__name__} computes attention {len(operations)} times, expected once"
        )
    operation = operations[0]
    tokens = signature.names[slot] if isinstance(slot, int) else slot
    key = _operand(operation, 1, "key")
    # Self-attention may be given its tokens twice, for queries and for keys.
    same = [name for name, value in bound.items() if value is bound[tokens]]
    entries = [n for n in capture.graph.nodes if n.op == "placeholder" and n.target in same]
    own = next(n for n in entries if n.target == tokens)
    return AttentionGraph(
        graph=capture.graph,
        module=module,
        arguments=pick_leaves(capture.key, bound),
        operation=operation,
        query=_operand(operation, 0, "query"),
        key=key,
        value=_operand(operation, 2, "value"),
        sequence=1 if operation.target is dispatch_attention_fn else key.meta["val"].ndim - 2,
        entry=next((entry for entry in (own, *entries) if carries(key, entry)), own),
    )


def has_attention(call: fx.Node, module: torch.nn.Module) -> bool:
    """Whether a module's own forward computes attention, of tokens to tokens or linear."""
    capture = _capture_call(Signature.of(type(module).forward).bind(call.args, call.kwargs), module)
    return any(_is_attention(n) for n in capture.graph.nodes) or _is_linear_attention(capture.graph)


def _is_linear_attention(graph: fx.Graph) -> bool:
    """Whether tokens are summed into a matrix by one product of activations and read from it by another.

    Weights of linear layers are no activations. A table of all pairs of tokens, as a product with its square result
    has it, is attention that some passes could not look into, and does not count.
    """
    products = _products(graph)
    lengths = {n.meta["val"].shape[1] for n in graph.nodes if n.op == "placeholder" and _is_tokens(n)}
    if any(p.meta["val"].shape[-1] == p.meta["val"].shape[-2] in lengths for p in products):
        return False
    return any(carries(late, early) for early in products for late in products if late is not early)


def _products(graph: fx.Graph) -> list[fx.Node]:
    """The products of two values that both depend on what the module is given."""
    return [
        n
        for n in graph.nodes
        if (n.op == "call_function" and n.target in _PRODUCTS)
        or (n.op == "call_method" and n.target in ("matmul", "bmm"))
    ]


def _is_tokens(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.ndim == 3


def attention_text(call: fx.Node, module: torch.nn.Module) -> str:
    """The graph of a module as text: equal calls may run other processors."""
    return str(_capture_call(Signature.of(type(module).forward).bind(call.args, call.kwargs), module).graph)


def _capture_call(bound: dict[str, Any], module: torch.nn.Module) -> Capture:
    """Trace a module for a call in a block graph; a processor that is itself a module is looked into."""
    key, leaves = flatten(fx.node.map_arg(bound, lambda n: n.meta["val"]))
    mode = next(leaf.fake_mode for leaf in leaves if isinstance(leaf, FakeTensor))
    opened = ("processor",) if "processor" in module._modules else ()
    return capture_block(module, key, leaves, opened=opened, opaque=(dispatch_attention_fn,), mode=mode)


def image_span(opened: AttentionGraph, before: fx.Node | None, behind: fx.Node | None) -> tuple[Any, fx.Node]:
    """Insert nodes for where the image tokens that may be merged start among the keys, and how many they are.

    Text and image may be concatenated inside the module; the part that comes from the site's tokens then holds the
    image. In what came in as the site's tokens, others may stand `before` it and `behind` it.

    Returns:
        (start, length), nodes or integers, placed before the attention operation.
    """
    graph = opened.graph
    start, length = _entry_span(opened)
    with graph.inserting_before(opened.operation):
        if before is not None:
            start = before if start == 0 else graph.call_function(operator.add, (start, before))
            length = graph.call_function(operator.sub, (length, before))
        if behind is not None:
            length = graph.call_function(operator.sub, (length, behind))
    return start, length


def _entry_span(opened: AttentionGraph) -> tuple[Any, fx.Node]:
    """Insert nodes for where the site's own tokens start among the keys, and how many they are."""
    graph, cat = opened.graph, _sequence_cat(opened)
    with graph.inserting_before(opened.operation):
        if cat is None:
            return 0, graph.call_method("size", (opened.key, opened.sequence))
        start: Any = 0
        axis = _cat_axis(cat)
        for part in cat.args[0]:  # type: ignore[union-attr]
            size = graph.call_method("size", (part, axis))
            if carries(part, opened.entry):  # type: ignore[arg-type]
                return start, size
            start = size if start == 0 else graph.call_function(operator.add, (start, size))
    raise SiteError("no part of the keys comes from the image tokens")


def carries(node: fx.Node, source: fx.Node) -> bool:
    """Whether numbers of `source` go into a value; a shape that is read off it does not count."""
    seen, pending = {node}, [node]
    while pending:
        current = pending.pop()
        if current is source:
            return True
        inputs = {n for n in current.all_input_nodes if _holds_tensors(n.meta.get("val"))} - seen
        seen |= inputs
        pending += inputs
    return False


def _holds_tensors(value: object) -> bool:
    return isinstance(value, torch.Tensor) or (
        isinstance(value, tuple | list) and any(map(_holds_tensors, value))
    )


def joins_text(opened: AttentionGraph) -> bool:
    """Whether the module itself puts other keys beside those of the site's tokens."""
    return _sequence_cat(opened) is not None


def _sequence_cat(opened: AttentionGraph) -> fx.Node | None:
    """Find where the keys are joined; along which axis depends on whether heads are split off before or after."""
    length = opened.key.meta["val"].shape[opened.sequence]
    node: fx.Node | None = opened.key
    while node is not None and node.op != "placeholder":
        if node.target is torch.cat:
            shape, axis = node.meta["val"].shape, _cat_axis(node)
            if axis < len(shape) - 1 and shape[axis] == length:
                return node
        node = next(iter(node.all_input_nodes), None)
    return None


def _cat_axis(node: fx.Node) -> int:
    """The axis of a ``torch.cat``, counted from the front."""
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return axis % node.meta["val"].ndim


def _is_attention(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (
        F.scaled_dot_product_attention,
        dispatch_attention_fn,
    )


def _operand(node: fx.Node, position: int, name: str) -> fx.Node:
    operand = node.args[position] if position < len(node.args) else node.kwargs[name]
    assert isinstance(operand, fx.Node)
    return operand
