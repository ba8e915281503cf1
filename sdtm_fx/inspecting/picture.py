"""A block as a picture before it has a form: boxes in layers, arrows between them."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from sdtm_fx.runtime import key_ops, ops, span_ops

BoxKind = Literal["merge", "unmerge", "forecast", "site", "module", "value", "operation"]

_HIDDEN = ("size", "expect", "bool", "int", "getattr")


@dataclass(frozen=True)
class Box:
    """One node of a graph.

    Attributes:
        name: Unique in its picture.
        label: What it computes.
        kind: For its colour.
        shape: What comes out, as text.
    """

    name: str
    label: str
    kind: BoxKind
    shape: str


@dataclass(frozen=True)
class Picture:
    """The graph of one block.

    Attributes:
        title: What it shows.
        boxes: Its nodes, by layer: an arrow always leads to a later layer.
        arrows: From box to box, by name.
    """

    title: str
    boxes: tuple[tuple[Box, ...], ...]
    arrows: tuple[tuple[str, str], ...]


def picture_of(graph: fx.Graph, title: str, sites: Collection[str] = ()) -> Picture:
    """Lay out a block graph: each box in the layer behind the last of what it needs.

    Reads of sizes and checks are left out, and so is picking one of several results: arrows lead past them.

    Args:
        graph: The graph.
        title: What it shows.
        sites: Paths of sites inside the block.
    """
    sources: dict[fx.Node, tuple[fx.Node, ...]] = {}
    layer: dict[fx.Node, int] = {}
    for node in graph.nodes:
        inputs: dict[fx.Node, None] = {}
        for operand in node.all_input_nodes:
            inputs.update(dict.fromkeys((operand,) if operand in layer else sources.get(operand, ())))
        sources[node] = tuple(inputs)
        if not _hidden(node):
            layer[node] = 1 + max((layer[n] for n in inputs), default=-1)
    used = {n for node in layer for n in sources[node]}
    shown = [n for n in layer if n in used or n.op == "output"]
    columns = [[n for n in shown if layer[n] == i] for i in range(1 + max(layer.values(), default=0))]
    ordered = _ordered([c for c in columns if c], sources)
    boxes = tuple(tuple(_box(n, sites) for n in column) for column in ordered)
    arrows = tuple((source.name, node.name) for node in shown for source in sources[node])
    return Picture(title, boxes, arrows)


def _ordered(
    columns: list[list[fx.Node]], sources: Mapping[fx.Node, tuple[fx.Node, ...]]
) -> list[list[fx.Node]]:
    """Every layer in the order of the middle of what its boxes need: fewer arrows cross."""
    place: dict[fx.Node, float] = {}
    for column in columns:
        middle = {n: [place[s] for s in sources[n] if s in place] for n in column}
        column.sort(key=lambda n: sum(middle[n]) / len(middle[n]) if middle[n] else -1.0)
        place.update({n: (i + 0.5) / len(column) for i, n in enumerate(column)})
    return columns


def _hidden(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op in ("call_method", "call_function") and name in _HIDDEN:
        return True
    value = node.meta.get("val")
    if node.op == "call_function" and node.target is operator.getitem:
        return isinstance(node.args[1], int) and isinstance(value, torch.Tensor)
    return node.op == "call_function" and isinstance(value, bool | int | float)


def _box(node: fx.Node, sites: Collection[str]) -> Box:
    value = node.meta.get("val")
    shape = f"{list(value.shape)}" if isinstance(value, torch.Tensor) else ""
    if node.op == "call_module":
        return Box(node.name, str(node.target), "site" if node.target in sites else "module", shape)
    if node.op in ("placeholder", "get_attr", "output"):
        return Box(node.name, str(node.target), "value", shape)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return Box(node.name, name, _kind(node), shape)


def _kind(node: fx.Node) -> BoxKind:
    if node.target in (ops.plan_tokens, ops.merge_tokens, key_ops.reduce_keys, span_ops.enter_span):
        return "merge"
    if node.target in (ops.unmerge_tokens, ops.blend_forecast, span_ops.leave_span):
        return "unmerge"  # a forecast is blended in where merged tokens come back
    if node.target in (ops.forecast_feature, span_ops.begin_stream, span_ops.forecast_stream):
        return "forecast"
    return "operation"
