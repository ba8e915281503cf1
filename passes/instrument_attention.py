"""Instrument attention: read the attention that tokens receive (IDM), and weigh the prompt's keys.

``attn(x)`` becomes a call of the attention module's own graph, in which

* a second output reports the attention received by each image token, or their queries and keys, for the plan of a
  later site, and
* a step-dependent log-weight is added to the logits of the text keys.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from sdtm_fx.attention_score import attention_heads, received_attention
from sdtm_fx.errors import SiteError
from sdtm_fx.methods.base import Method
from sdtm_fx.passes.insert_merges import prefix_length
from sdtm_fx.passes.locate_sites import first_placeholder
from sdtm_fx.rewriting.attention import AttentionGraph, has_text, image_span, open_attention
from sdtm_fx.rewriting.codegen import graph_function
from sdtm_fx.rewriting.work import BlockWork, Pass, SitePlace
from sdtm_fx.runtime import ops
from sdtm_fx.sites.locating import Site, locate


def instrument_attention(work: BlockWork) -> int:
    """Rewrite the attention modules that a score or the prompt weight needs; returns how many."""
    scored = _scored_plan(work)
    weighted = work.recipe.prompt is not None
    if scored is None and not weighted:
        return 0
    attentions = [_attention(work, place) for place in work.attention_places]
    if scored is not None:
        if not attentions:
            raise SiteError(
                f"method {work.stage.method.name!r} reads attention, but the recipe names no attention site in "  # type: ignore[union-attr]
                f"{type(work.block).__name__}; add one to `sites` (it need not be in the stage)"
            )
        if attentions[0].spec.id in work.sites:
            raise SiteError(
                f"method {work.stage.method.name!r} reads the block's own, dense attention; take site "  # type: ignore[union-attr]
                f"{attentions[0].spec.id!r} out of stage {work.stage.name!r}"  # type: ignore[union-attr]
            )
    for index, site in enumerate(attentions if weighted else attentions[:1]):
        _instrument(work, site, scored if index == 0 else None, weighted)
    return len(attentions) if weighted else 1


def _scored_plan(work: BlockWork) -> fx.Node | None:
    if not work.merges or not work.stage.method.reads_attention():  # type: ignore[union-attr]
        return None
    return next(iter(work.calls(ops.plan_tokens)), None)


def _attention(work: BlockWork, place: SitePlace) -> Site:
    spec = work.recipe.sites[place.site_index]
    if spec.id in work.sites:
        return work.sites[spec.id]
    return locate(work.graph, work.block, spec, place.local, place.path)


def _instrument(work: BlockWork, site: Site, plan: fx.Node | None, weighted: bool) -> None:
    where = f"site {site.spec.id!r}"
    module = work.block.get_submodule(site.local)
    opened = open_attention(site.node, module, site.slot, where)
    inner = opened.graph
    prefix = first_placeholder(inner, "prefix")
    context = first_placeholder(inner, "ctx")
    start, length = image_span(opened, prefix if site.spec.prefix is not None else None)
    if weighted:
        _weigh_prompt(opened, context, start, length, where)
    if plan is not None:
        assert work.stage is not None  # what is planned is planned for a stage
        _report(opened, start, length, work.stage.method, where)
    inner.lint()
    function = graph_function(inner, module, f"attention_{site.spec.id}".replace("-", "_"))
    _call_instead(work, site, function, opened.arguments, plan)


def _weigh_prompt(opened: AttentionGraph, context: fx.Node, start: Any, length: fx.Node, where: str) -> None:
    operation = opened.operation
    if operation.kwargs.get("attn_mask") is not None or len(operation.args) > 3:
        raise SiteError(f"{where}: attention already has a mask; prompt weights do not combine with it")
    with opened.graph.inserting_before(operation):
        total = opened.graph.call_method("size", (opened.key, opened.sequence))
        mask = opened.graph.call_function(ops.prompt_mask, (context, opened.key, start, length, total))
        operation.update_kwarg("attn_mask", mask)


def _report(opened: AttentionGraph, start: Any, length: fx.Node, method: Method, where: str) -> None:
    """Add what the method reads to the output."""
    graph, text = opened.graph, "text" in method.wants()
    lengths = [node.meta["val"].shape[opened.sequence] for node in (opened.query, opened.key)]
    if lengths[0] != lengths[1]:
        raise SiteError(
            f"{where}: method {method.name!r} reads attention among image tokens, and here {lengths[0]} queries attend "
            f"to {lengths[1]} keys; name the block's self-attention or joint attention first"
        )
    if text and not has_text(opened, start):
        raise SiteError(
            f"{where}: method {method.name!r} reads attention to text with these options, and there are image keys only"
        )
    with graph.inserting_before(opened.operation):
        query, key = opened.query, opened.key
        if opened.sequence == 1:
            query = graph.call_method("transpose", (query, 1, 2))
            key = graph.call_method("transpose", (key, 1, 2))
        span = {"image": (start, length)}
        if "heads" in method.wants():
            scale = opened.operation.kwargs.get("scale")
            read = graph.call_function(attention_heads, (query, key), span | {"text": text, "scale": scale})
        else:
            read = graph.call_function(received_attention, (query, key), span | {"probes": method.probes()})
    output = next(iter(reversed(graph.nodes)))
    output.args = ((output.args[0], read),)


def _call_instead(
    work: BlockWork, site: Site, function: object, arguments: list[object], plan: fx.Node | None
) -> None:
    graph, old = work.graph, site.node
    with graph.inserting_before(_place_of_call(site, arguments, plan)):
        module = graph.create_node("get_attr", site.local)
        prefix = 0 if site.spec.prefix is None else prefix_length(work, site)
        call = graph.call_function(function, (module, work.ctx, prefix, *arguments))  # type: ignore[arg-type]
        result = call
        if plan is not None:
            result = graph.call_function(operator.getitem, (call, 0))
            assert work.stage is not None  # what is planned is planned for a stage
            name = "heads" if "heads" in work.stage.method.wants() else "attention"
            plan.update_kwarg(name, graph.call_function(operator.getitem, (call, 1)))
        result.meta["val"] = old.meta["val"]
    old.replace_all_uses_with(result)
    graph.erase_node(old)


def _place_of_call(site: Site, arguments: list[object], plan: fx.Node | None) -> fx.Node:
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


INSTRUMENT_ATTENTION = Pass("instrument_attention", exact=False, run=instrument_attention)
