"""From a model and one example call to the graphs of its blocks, and the outer graph around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from sdtm_fx.capture.arguments import Key, Leaf, Signature, flatten
from sdtm_fx.capture.hooked import hooks_bypassed
from sdtm_fx.capture.kept import attributes_kept
from sdtm_fx.capture.stand_ins import weights_in_place
from sdtm_fx.capture.tracer import BlockTracer, Capture
from sdtm_fx.capture.whole_numbers import following
from sdtm_fx.errors import CaptureError, HostReadError


class ExampleLeaves(list[Leaf]):
    """Example values of a call. Copies of a model share them: fake tensors hold nothing that could be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> ExampleLeaves:
        return self


@dataclass(frozen=True)
class BlockCall:
    """One call of a block inside the outer graph.

    Attributes:
        path: Module path of the block.
        key: Structure of its arguments.
        leaves: Example values (fake tensors).
        node: The call in the outer graph.
    """

    path: str
    key: Key
    leaves: list[Leaf]
    node: fx.Node


@dataclass(frozen=True)
class OuterCapture:
    """The whole model as a graph with its blocks as leaves.

    Attributes:
        graph: The graph.
        calls: The calls of blocks, in order.
        arguments: The arguments of the model's forward, by name, fake tensors.
        mode: The fake mode of all example values.
    """

    graph: fx.Graph
    calls: tuple[BlockCall, ...]
    arguments: dict[str, Any]
    mode: FakeTensorMode


def capture_outer(
    model: torch.nn.Module,
    block_paths: Collection[str],
    example: Callable[[], Mapping[str, Any]],
) -> OuterCapture:
    """Trace a model's forward on fake tensors: no weights move, nothing is computed.

    Args:
        model: The model.
        block_paths: Modules whose calls are wanted.
        example: Makes the keyword arguments of one call; runs under the fake mode.

    Raises:
        HostReadError: The forward reads a value that is not known.
        CaptureError: The forward cannot be traced, or a block is called never or more than once.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), hooks_bypassed(model), mode:
        signature = Signature.of(type(model).forward)
        arguments = signature.bind((), example())
        key, leaves = flatten(arguments)
        # Inner modules that hold a block must be looked into, to see the block's call.
        ancestors = {path[:i] for path in block_paths for i, c in enumerate(path) if c == "."}
        try:
            with following(leaves), weights_in_place(model, leaves), attributes_kept(model):
                tracer = BlockTracer(opened=ancestors - set(block_paths), constants=True)
                outer = tracer.capture(model, key, leaves)
        except CaptureError as error:
            if isinstance(error.__cause__, DataDependentOutputException):
                raise HostReadError(
                    f"{error}: the forward reads a value of a tensor on the host (`read: true` in the recipe's "
                    "`inputs` makes those of a mask known)"
                ) from error
            raise
    wanted = set(block_paths)
    calls = []
    for node, (args, kwargs) in outer.calls.items():
        if node.target in wanted:
            block = model.get_submodule(str(node.target))
            call_key, call_leaves = flatten(Signature.of(type(block).forward).bind(args, kwargs))
            calls.append(BlockCall(str(node.target), call_key, ExampleLeaves(call_leaves), node))
    repeated = sorted(path for path, times in Counter(c.path for c in calls).items() if times > 1)
    if repeated:
        raise CaptureError(
            f"{type(model).__name__}.forward calls {', '.join(repeated)} more than once; a rewritten block keeps "
            "features of one call, so it must be called once"
        )
    missing = wanted - {c.path for c in calls}
    if missing:
        raise CaptureError(
            f"blocks are not called by {type(model).__name__}.forward: {', '.join(sorted(missing))}"
        )
    return OuterCapture(outer.graph, tuple(calls), arguments, mode)


def capture_block(
    block: torch.nn.Module,
    key: Key,
    leaves: list[Leaf],
    *,
    opened: Collection[str] = (),
    opaque: Collection[Callable[..., Any]] = (),
    mode: FakeTensorMode | None = None,
) -> Capture:
    """Trace one block. Real example tensors are made fake first: shapes are all that a trace needs.

    Args:
        block: The module; it is not changed.
        key: Structure of the call.
        leaves: Example values, real or fake.
        opened: Submodules to trace through, relative to the block.
        opaque: Functions to keep as one node.
        mode: The fake mode that made the leaves, if they are fake.
    """
    modes = (leaf.fake_mode for leaf in leaves if isinstance(leaf, FakeTensor))
    mode = mode or next(modes, None) or FakeTensorMode(allow_non_fake_inputs=True)
    fakes: list[Leaf] = [
        mode.from_tensor(v) if isinstance(v, torch.Tensor) and not isinstance(v, FakeTensor) else v
        for v in leaves
    ]
    with torch.no_grad(), hooks_bypassed(block), mode, weights_in_place(block, fakes):
        return BlockTracer(opened, opaque).capture(block, key, fakes)
