"""Tracing one module for one call, and running its graph on other calls."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from sdtm_fx.capture.arguments import Signature, flatten
from sdtm_fx.capture.blocks import capture_block
from sdtm_fx.capture.tracer import Capture
from sdtm_fx.rewriting.codegen import graph_function


def trace(
    module: nn.Module,
    *args: Any,
    opened: Collection[str] = (),
    opaque: Collection[Callable[..., Any]] = (),
    **kwargs: Any,
) -> Capture:
    """Capture a module for one call."""
    key, leaves = flatten(Signature.of(type(module).forward).bind(args, kwargs))
    return capture_block(module, key, leaves, opened=opened, opaque=opaque)


def replay(capture: Capture, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run a captured graph on another call of the same structure."""
    key, leaves = flatten(Signature.of(type(module).forward).bind(args, kwargs))
    assert key == capture.key
    return graph_function(capture.graph, module, "replayed")(module, *leaves)


def targets(capture: Capture, op: str) -> list[Any]:
    """The targets of all nodes of one kind, in order."""
    return [n.target for n in capture.graph.nodes if n.op == op]


def assert_exact(capture: Capture, module: nn.Module, *args: Any, **kwargs: Any) -> None:
    """The graph gives bit for bit what the module gives."""
    torch.testing.assert_close(
        replay(capture, module, *args, **kwargs), module(*args, **kwargs), rtol=0, atol=0, equal_nan=True
    )
