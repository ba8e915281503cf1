"""What finding the tokens to merge costs: products alone, and all that it asks of a device."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sdtm_fx.cost.counter import MacCounter, Macs
from sdtm_fx.cost.effort import Effort, EffortCounter
from sdtm_fx.cost.trial import model_call
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.methods.base import Method
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.runtime.call import BlockContext, Variant
from sdtm_fx.runtime.ops import plan_tokens
from sdtm_fx.runtime.state import BranchState


@dataclass(frozen=True)
class PlanCost:
    """What a plan costs.

    Attributes:
        made: MACs of making it.
        weighed: MACs of making it with the destinations of an earlier one.
        per_channel: MACs of one merge, and of one unmerge, per channel and sample.
    """

    made: Macs
    weighed: Macs
    per_channel: int


def plan_macs(method: Method, grid: TokenGrid, text: int, width: int, remove: int) -> Macs:
    """What finding the tokens to merge costs, per plan; `width` is that of the tokens compared."""
    return plan_cost(method, grid, text, width, remove).made


@functools.lru_cache(maxsize=4096)
def plan_cost(method: Method, grid: TokenGrid, text: int, width: int, remove: int) -> PlanCost:
    """What one plan costs; `width` is that of the tokens compared.

    Remembered, since schedules of many recipes ask for the same few counts, and each answer is a plan made on meta.
    """
    if remove <= 0 or not method.merges:
        return PlanCost(Macs(), Macs(), 0)
    # A continuous curve asks for counts between those that the method can remove; the search costs the same.
    remove = min(max(remove, method.quantum()), method.capacity(grid)) // method.quantum() * method.quantum()
    with torch.device("meta"):
        view = method.blank_view(1, grid, width, text)
        with MacCounter() as counter:
            plan = method.plan(view, remove)
        made = counter.macs + score_macs(method, grid, text, width)
        made = made + Macs(0.0, method.search_macs(grid, remove))
        if not method.chooses_destinations:
            return PlanCost(made, made, plan.macs_per_channel)
        with MacCounter() as counter:
            method.replan(view, remove, plan)
    return PlanCost(made, counter.macs, plan.macs_per_channel)


def score_macs(method: Method, grid: TokenGrid, text: int, width: int) -> Macs:
    """What reading the attention that tokens receive costs, per plan; arguments as for `plan_macs`."""
    if "attention" not in method.wants():
        return Macs()
    tokens = tokens_on(grid)
    probes = min(method.probes() or tokens, tokens)
    return Macs(0.0, float(probes * (tokens + text) * width))


def method_effort(method: Method, grid: TokenGrid, text: int, width: int, remove: int) -> Effort:
    """All that one plan of a method asks of a device, by itself, for one sample in bfloat16.

    Args:
        method: A method that merges.
        grid: (height, width) in tokens.
        text: Text tokens.
        width: Channels of the tokens that are compared.
        remove: Tokens removed; what the method can remove.
    """
    counter = EffortCounter()
    with torch.no_grad(), FakeTensorMode():
        view = method.blank_view(1, grid, width, text)
        view = replace(view, metric=view.metric.to(torch.bfloat16))
        with counter.counting():
            method.plan(view, remove)
    return counter.effort + Effort(attention=score_macs(method, grid, text, width).total)


def plan_effort(
    recipe: Recipe,
    stage: int,
    grid: TokenGrid,
    text: int,
    width: int,
    remove: int,
    batch: int,
    dtype: torch.dtype,
    keep_destinations: bool = False,
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
        keep_destinations: Whether it keeps the destinations of an earlier plan.
    """
    method = recipe.stages[stage].method
    if remove <= 0 or not method.merges:
        return Effort()
    counter = EffortCounter()
    with torch.no_grad(), FakeTensorMode():
        state = BranchState(importance=torch.zeros(batch, tokens_on(grid)))
        call = model_call(recipe, stage, Variant(stage=stage), grid, remove, state)
        call = replace(call, halves=2 if "cfg" in recipe.plan.share and batch % 2 == 0 else 1)
        view = method.blank_view(batch, grid, width, text)
        if keep_destinations:
            rows = 1 if call.share_batch else batch // call.halves
            state.plans[0] = method.plan(method.blank_view(rows, grid, width, text), remove)
            call = replace(call, phase=replace(call.phase, fresh_destinations=False))
        with counter.counting():
            plan_tokens(BlockContext(call, 0, {}), view.metric.to(dtype), view.attention, view.heads)
    return counter.effort + Effort(attention=score_macs(method, grid, text, width).total * batch)
