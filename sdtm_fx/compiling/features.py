"""Laying out features before the blocks run: their sizes are read off the graphs that store them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from sdtm_fx.capture.arguments import Leaf
from sdtm_fx.capture.hooked import hooks_bypassed
from sdtm_fx.capture.stand_ins import weights_in_place
from sdtm_fx.rewriting.programs import Program
from sdtm_fx.runtime.call import BlockContext, Call
from sdtm_fx.runtime.feature import Feature
from sdtm_fx.runtime.state import BranchState

Shapes = dict[str, tuple[torch.Size, torch.dtype, torch.device]]


class FeatureLayout:
    """Makes the tensors that features are stored in, before the block that stores them runs.

    Args:
        fixed_addresses: Promise the compiler that the tensors stay where they are (CUDA graphs).
    """

    def __init__(self, fixed_addresses: bool) -> None:
        self._fixed = fixed_addresses
        self._known: dict[Any, Shapes] = {}

    def lay_out(
        self, call: Call, index: int, block: torch.nn.Module, program: Program, leaves: list[Leaf]
    ) -> None:
        """Make what one block stores in this call and has no tensor for yet.

        Args:
            call: The call, in the variant that the block runs.
            index: The block's number.
            block: The block; it is not changed.
            program: Its program.
            leaves: The arguments of the block, real or fake.
        """
        if call.variant is None or call.variant.refresh is None:
            return
        state = call.state
        missing = [n for n in program.features.get(call.variant, ()) if (index, n) not in state.features]
        if not missing:
            return
        shapes = self._shapes(call, block, program, leaves)
        for name in missing:
            spare = state.spare.pop((index, name), None)
            fits = spare is not None and _traits(spare.newer) == shapes[name]
            feature = spare if fits and spare is not None else self._empty(call, shapes[name])
            state.features[index, name] = feature
            state.unsettled.append(feature)

    def _empty(self, call: Call, shape: tuple[torch.Size, torch.dtype, torch.device]) -> Feature:
        feature = Feature.empty(*shape, call.forecast_order, call.dates_tokens)
        if self._fixed:
            for tensor in feature.tensors().values():
                torch._dynamo.mark_static_address(tensor, guard=False)
        return feature

    def _shapes(self, call: Call, block: torch.nn.Module, program: Program, leaves: list[Leaf]) -> Shapes:
        sizes = tuple(_traits(v) if isinstance(v, torch.Tensor) else type(v) for v in leaves)
        key = (id(program), call.variant, sizes)
        if key not in self._known:
            self._known[key] = _stored_shapes(call, block, program, leaves)
        return self._known[key]


def _traits(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _stored_shapes(call: Call, block: torch.nn.Module, program: Program, leaves: list[Leaf]) -> Shapes:
    """Run the graph that stores on fake tensors, and see what it leaves."""
    modes = (leaf.fake_mode for leaf in leaves if isinstance(leaf, FakeTensor))
    mode = next(modes, None) or FakeTensorMode(allow_non_fake_inputs=True)
    fakes: list[Leaf] = [
        mode.from_tensor(v) if isinstance(v, torch.Tensor) and not isinstance(v, FakeTensor) else v
        for v in leaves
    ]
    state = BranchState()
    assert call.variant is not None
    function = program.functions[call.variant.key]
    with torch.no_grad(), hooks_bypassed(block), mode, weights_in_place(block, fakes):
        state.now = torch.zeros(())
        spans = program.begun(call.variant, fakes)
        function(block, BlockContext(replace(call, state=state), 0, {}, spans=spans), *fakes)
    return {name: _traits(feature.newer) for (_, name), feature in state.features.items()}
