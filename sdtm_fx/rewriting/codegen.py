"""From a graph to a function that any block of the same structure can run as its own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

BlockFunction = Callable[..., Any]


def graph_function(graph: fx.Graph, owner: torch.nn.Module, name: str) -> BlockFunction:
    """Compile a graph to a plain function ``f(owner, *placeholders)``.

    The function reads submodules from the object that it is given, so one function serves every module of
    the same structure, and LoRA layers that replace a submodule later are the ones that run.

    Args:
        graph: The graph; its module targets are paths inside `owner`.
        owner: A module that has these submodules; only looked at.
        name: Name of the function in tracebacks and profiles.
    """
    module = fx.GraphModule(owner, graph, class_name=name)
    function: Callable[..., Any] = type(module).forward
    function.__name__ = name
    function.__qualname__ = name
    function.__module__ = "sdtm_fx.generated"
    return function


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """Copy a graph with the metadata of its nodes."""
    copy = fx.Graph(tracer_cls=graph._tracer_cls)
    result = copy.graph_copy(graph, {})
    output = copy.output(result)
    last = next(iter(reversed(graph.nodes)))
    output.meta.update(last.meta)
    return copy
