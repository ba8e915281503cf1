"""Laying out state before the blocks run: tensors whose sizes follow from the call alone.

Compiled code that made its own state would be another graph the first time, and CUDA graphs want every tensor
where it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sdtm_fx.base_plan import Plan
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.methods.base import Method
from sdtm_fx.runtime.call import Call


def lay_out_ages(call: Call, groups: Sequence[int], batch: int, device: torch.device) -> None:
    """Make the age counters that the call may read.

    Args:
        call: The call.
        groups: The plan groups of the rewritten blocks.
        batch: Samples in the call.
        device: Of the tokens.
    """
    if not call.reads("ages"):
        return
    with torch.inference_mode(False):
        for key in (0,) if call.one_age_counter else groups:
            if key not in call.state.ages:
                tokens = tokens_on(call.grid if call.one_age_counter else call.grid_in(key))
                shape = (_rows(call, batch), tokens)
                call.state.ages[key] = torch.zeros(shape, dtype=torch.int32, device=device)


def lay_out_plans(call: Call, groups: Sequence[int], batch: int, device: torch.device) -> None:
    """Make the tensors that plans are kept in, where the call keeps them.

    Args:
        call: The call.
        groups: The plan groups of the rewritten blocks.
        batch: Samples in the call.
        device: Of the tokens.
    """
    state, stage, remove = call.state, call.phase.stage, call.phase.remove
    if not call.keep_plans or stage is None or call.method is None or not call.method.merges:
        return
    if (stage, remove) not in state.laid_out:
        method, rows = call.method, _rows(call, batch)
        sizes = {group: (call.grid_in(group), call.removed_in(group)) for group in groups}
        shapes = {size: _plan_of(method, size[0], rows, size[1]) for size in set(sizes.values())}
        state.laid_out[stage, remove] = {group: _empty(shapes[sizes[group]], device) for group in groups}
    state.plans = state.laid_out[stage, remove]


def _rows(call: Call, batch: int) -> int:
    """How many plans the batch has."""
    return 1 if call.share_batch else batch // call.halves


def _plan_of(method: Method, grid: TokenGrid, rows: int, remove: int) -> Plan:
    """A plan on fake tensors: what its sizes are."""
    with FakeTensorMode():
        return method.plan(method.blank_view(rows, grid, 8), remove)


def _empty(shape: Plan, device: torch.device) -> Plan:
    with torch.inference_mode(False):
        return shape.with_tensors(torch.zeros(t.shape, dtype=t.dtype, device=device) for t in shape.tensors())
