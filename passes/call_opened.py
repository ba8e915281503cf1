"""Call opened: an attention module that passes have opened is called as the graph that they made of it."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from sdtm_fx.errors import SiteError
from sdtm_fx.passes.insert_merges import image_place
from sdtm_fx.rewriting.codegen import graph_function
from sdtm_fx.rewriting.opening import OpenedSite
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.sites.locating import Site


def call_opened(work: BlockWork) -> int:
    """Replace the call of every opened module; returns how many."""
    for opened in work.opened.values():
        opened.attention.graph.lint()
        _call_instead(work, opened)
    return len(work.opened)


def _call_instead(work: BlockWork, opened: OpenedSite) -> None:
    graph, site, plan = work.graph, opened.site, opened.scored
    inner, old = opened.attention, opened.site.node
    function = graph_function(inner.graph, inner.module, f"attention_{site.spec.id}".replace("-", "_"))
    with graph.inserting_before(_place_of_call(site, inner.arguments, plan)):
        module = graph.create_node("get_attr", site.local)
        place = image_place(work, site)
        arguments: tuple[Any, ...] = (module, work.ctx, *place, opened.outer_plan, *inner.arguments)
        call = graph.call_function(function, arguments)
        result = call
        if plan is not None:
            result = graph.call_function(operator.getitem, (call, 0))
            plan.update_kwarg(opened.reads, graph.call_function(operator.getitem, (call, 1)))
        result.meta["val"] = old.meta["val"]
    old.replace_all_uses_with(result)
    graph.erase_node(old)


def _place_of_call(site: Site, arguments: list[Any], plan: fx.Node | None) -> fx.Node:
    """Where attention is called: where it was, or in front of the plan that reads it (parallel blocks)."""
    order = {node: i for i, node in enumerate(site.node.graph.nodes)}
    if plan is None or order[site.node] < order[plan]:
        return site.node
    late = [a for a in arguments if isinstance(a, fx.Node) and order[a] > order[plan]]
    if late:
        raise SiteError(
            f"site {site.spec.id!r}: its attention needs {late[0].name}, which is computed after the plan that "
            "reads attention; this method works for feed-forward sites behind or beside attention"
        )
    return plan


CALL_OPENED = Pass("call_opened", exact=True, run=call_opened)
