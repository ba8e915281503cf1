"""Stacked merges: slots that are merged once more, and count for as many tokens as they stand for (ToMe)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sdtm_fx.errors import PlanError
from sdtm_fx.plan import MergePlan


def stacked(inner: MergePlan, sizes: Tensor) -> MergePlan:
    """Return a plan over the slots of another one, in which each slot weighs as many tokens as it stands for.

    With it, merging twice gives the mean that merging once by `composed` gives: the sizes of tokens in ToMe
    (Bolya et al. 2023). What else a slot may hold follows from the two stages: ``prune`` takes the value of the
    slot that represents it, and needs no sizes; ``mlerp`` takes the direction of the weighted mean and the norm of
    the longest slot, not of the longest token, which merging has forgotten.

    Args:
        inner: A plan over M slots.
        sizes: [P, M] int64, what each of them stands for.

    Raises:
        PlanError: The sizes are of other slots.
    """
    if sizes.shape != inner.assign.shape:
        raise PlanError(
            f"stacked: found sizes of shape {tuple(sizes.shape)}; accepted {list(inner.assign.shape)}, one per slot "
            "that the plan merges"
        )
    return replace(inner, stands_for=sizes)


def composed(outer: MergePlan, inner: MergePlan) -> MergePlan:
    """Return the plan that takes tokens to the slots of `inner` in one step.

    Args:
        outer: A plan from N tokens to M slots.
        inner: A plan over these M slots; the batch of one of the two may be 1.

    Raises:
        PlanError: The inner plan is over another number of slots.
    """
    if inner.tokens != outer.kept:
        raise PlanError(
            f"composed: found a plan over {inner.tokens} tokens; accepted one over the {outer.kept} slots of the outer"
        )
    rows = max(outer.assign.shape[0], inner.assign.shape[0])
    first, positions, second, places = (
        t.expand(rows, -1) for t in (outer.assign, outer.positions, inner.assign, inner.positions)
    )
    ordered, order = torch.sort(second.gather(1, first), dim=1, stable=True)
    slots = torch.arange(inner.kept, device=first.device).expand(rows, -1).contiguous()
    return MergePlan(
        assign=second.gather(1, first),
        positions=positions.gather(1, places),
        order=order,
        starts=torch.searchsorted(ordered, slots),
        kept=inner.kept,
        reduce=inner.reduce,
        stands_for=outer.stands_for,
    )
