"""The operations of sites that merge inside of a span."""

from __future__ import annotations

import torch

from sdtm_fx.base_plan import Plan
from sdtm_fx.errors import PlanError
from sdtm_fx.hashing import combine
from sdtm_fx.methods.base import TokenView
from sdtm_fx.plan import MergePlan
from sdtm_fx.runtime.call import BlockContext
from sdtm_fx.runtime.ops import draw_salt, shared
from sdtm_fx.runtime.span_ops import opened_span
from sdtm_fx.stacking import stacked

_STREAM = 1
"""Sets the draws of these plans apart from those of the span."""


def plan_slots(ctx: BlockContext, slots: torch.Tensor, name: str) -> Plan:
    """Make the plan of a block inside of a span, over the slots that it runs on, or take the one that it shares.

    Every slot counts for as many tokens as it has.

    Args:
        ctx: The block in the current call.
        slots: What similarity is computed from, [B, M, D].
        name: Id of the span.

    Raises:
        PlanError: There are not as many of them as the span has slots, or the span was not entered.
    """
    call, span = ctx.call, opened_span(ctx, name)
    inside, key = call.inside, (span.entry, ctx.group)
    assert inside is not None, "this graph is only made for stages that merge inside of spans"
    if key not in ctx.planned:
        if slots.shape[1] != span.plan.kept:
            raise PlanError(
                f"block {ctx.block} is inside span {name!r}, which has {span.plan.kept} slots, and compares "
                f"{slots.shape[1]} tokens there; a `metric` of its sites has to be the span's own `input`"
            )
        metric = shared(slots, call.share_batch, call.halves)
        view = TokenView(metric, (1, span.plan.kept), salt=combine(draw_salt(ctx), _STREAM))
        plan, outer = inside.method.plan(view, inside.remove), span.plan
        assert isinstance(plan, MergePlan) and isinstance(outer, MergePlan)  # noqa: PT018 - recipes see to it
        plan = stacked(plan, outer.sizes[: metric.shape[0]])
        if not call.share_batch and call.halves > 1:
            plan = plan.repeat(call.halves)
        ctx.planned[key] = plan
    made = ctx.planned[key]
    assert isinstance(made, Plan)
    return made.reduced_by(inside.reduce)


def span_plan(ctx: BlockContext, name: str) -> Plan:
    """The plan of the span that a block is inside of: the sizes of the slots that it runs on.

    Raises:
        PlanError: The span was not entered in this call.
    """
    return opened_span(ctx, name).plan
