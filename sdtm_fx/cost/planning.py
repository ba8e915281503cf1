"""What finding the tokens to merge costs: products alone, and all that it asks of a device."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sdtm_fx.cost.counter import MacCounter, Macs
from sdtm_fx.cost.effort import Effort, EffortCounter
from sdtm_fx.cost.trial import model_call
from sdtm_fx.methods.base import Method
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.runtime.call import BlockContext, Variant
from sdtm_fx.runtime.ops import plan_tokens
from sdtm_fx.runtime.state import BranchState


def plan_macs(method: Method, grid: tuple[int, int], text: int, width: int, remove: int) -> Macs:
    """What finding the tokens to merge costs, per plan; `width` is that of the tokens compared."""
    if remove <= 0 or not method.merges:
        return Macs()
    # A continuous curve asks for counts between those that the method can remove; the search costs the same.
    remove = min(max(remove, method.quantum()), method.capacity(grid)) // method.quantum() * method.quantum()
    with torch.device("meta"):
        view = method.blank_view(1, grid, width, text)
        with MacCounter() as counter:
            method.plan(view, remove)
    return counter.macs + score_macs(method, grid, text, width)


def score_macs(method: Method, grid: tuple[int, int], text: int, width: int) -> Macs:
    """What reading the attention that tokens receive costs, per plan; arguments as for `plan_macs`."""
    if "attention" not in method.wants():
        return Macs()
    tokens = grid[0] * grid[1]
    probes = min(method.probes() or tokens, tokens)
    return Macs(0.0, float(probes * (tokens + text) * width))


def plan_effort(
    recipe: Recipe,
    stage: int,
    grid: tuple[int, int],
    text: int,
    width: int,
    remove: int,
    batch: int,
    dtype: torch.dtype,
) -> Effort:
    """All that making one plan asks of a device, as a block does it.

    Args:
        recipe: The recipe.
        stage: Index of the stage.
        grid: (height, width) in tokens.
        text: Text tokens.
        width: Channels of the tokens that are compared.
        remove: Tokens removed; what the method can remove.
        batch: Samples in the call; where the recipe shares plans over CFG halves, an even number has two.
        dtype: Of the tokens.
    """
    method = recipe.stages[stage].method
    if remove <= 0 or not method.merges:
        return Effort()
    counter = EffortCounter()
    with torch.no_grad(), FakeTensorMode():
        call = model_call(recipe, stage, Variant(stage=stage), grid, remove, BranchState())
        call = replace(call, halves=2 if "cfg" in recipe.plan.share and batch % 2 == 0 else 1)
        view = method.blank_view(batch, grid, width, text)
        with counter.counting():
            plan_tokens(BlockContext(call, 0, {}), view.metric.to(dtype), view.attention, view.heads)
    return counter.effort + Effort(attention=score_macs(method, grid, text, width).total * batch)
