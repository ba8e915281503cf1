"""Share plans: all sites of a block use the plan of the first, and merge an input only once.

Where a span begins or goes on, its own plan is one, and the plan that sites inside of it share is another.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import ops, stack_ops


def share_plans(work: BlockWork) -> int:
    """Drop every plan but the block's first, of each kind; returns how many were dropped."""
    dropped = 0
    for kind in (ops.plan_tokens, stack_ops.plan_slots):
        plans = work.calls(kind)
        for plan in plans[1:]:
            plan.replace_all_uses_with(plans[0])
            work.graph.erase_node(plan)
            dropped += 1
    for function in (ops.before_image, ops.behind_image, ops.remaining, ops.place_plan, ops.merge_tokens):
        _merge_equal_calls(work, function)
    work.drop_unused()
    return dropped


def _merge_equal_calls(work: BlockWork, function: Callable[..., object]) -> None:
    """Keep one of several calls with the same arguments; sizes count as equal when read off the same value."""
    seen: dict[tuple[object, ...], fx.Node] = {}
    for node in work.calls(function):
        # Sites of one plan have one image in their sequences; a length that differs is refused where it is merged.
        told = (a for i, a in enumerate(node.args) if function is not ops.remaining or i != 1)
        key = tuple(_identity(a) for a in told)
        if key in seen:
            node.replace_all_uses_with(seen[key])
            work.graph.erase_node(node)
        else:
            seen[key] = node


def _identity(argument: object) -> object:
    if isinstance(argument, fx.Node) and argument.op == "call_method" and argument.target == "size":
        return ("size", *argument.args)
    return argument


SHARE_PLANS = Pass("share_plans", exact=False, run=share_plans)
