"""Instrument attention: read the attention that tokens receive (IDM), and weigh the prompt's keys.

``attn(x)`` becomes a call of the attention module's own graph, in which

* a second output reports the attention received by each image token, or their queries and keys, for the plan of a
  later site, and
* a step-dependent log-weight is added to the logits of the text keys.
"""

from __future__ import annotations

from torch import fx

from sdtm_fx.attention_score import attention_heads, received_attention
from sdtm_fx.errors import SiteError
from sdtm_fx.methods.base import Method
from sdtm_fx.rewriting.attention import joins_text
from sdtm_fx.rewriting.opening import OpenedSite, open_site, reads_image
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import ops
from sdtm_fx.sites.locating import Site


def instrument_attention(work: BlockWork) -> int:
    """Rewrite the attention modules that a score or the prompt weight needs; returns how many."""
    scored = _scored_plan(work)
    weighted = work.recipe.prompt is not None
    if scored is None and not weighted:
        return 0
    attentions = [work.site_at(place) for place in work.attention_places]
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


def _instrument(work: BlockWork, site: Site, plan: fx.Node | None, weighted: bool) -> None:
    opened = open_site(work, site)
    if weighted:
        _weigh_prompt(opened)
    if plan is not None:
        assert work.stage is not None  # what is planned is planned for a stage
        _report(opened, plan, work.stage.method)


def _weigh_prompt(opened: OpenedSite) -> None:
    graph, key = opened.attention.graph, opened.key
    with graph.inserting_before(opened.attention.operation):
        total = graph.call_method("size", (key, opened.axis))
        mask = graph.call_function(ops.prompt_mask, (opened.context, key, opened.start, opened.length, total))
    opened.add_bias(mask)


def _report(opened: OpenedSite, plan: fx.Node, method: Method) -> None:
    """Add what the method reads to the output of the attention module, for a plan in the block."""
    graph, attention, text = opened.attention.graph, opened.attention, "text" in method.wants()
    if not reads_image(opened):
        raise SiteError(
            f"{opened.where}: method {method.name!r} reads attention among image tokens, and here the keys are those "
            "of a text (cross-attention); name the block's self-attention or joint attention first"
        )
    spec = opened.site.spec
    if text and not joins_text(attention) and spec.prefix is None and spec.suffix is None:
        raise SiteError(
            f"{opened.where}: method {method.name!r} reads attention to text with these options, and there are image "
            "keys only"
        )
    with graph.inserting_before(attention.operation):
        query, key = attention.query, attention.key
        if opened.axis == 1:
            query = graph.call_method("transpose", (query, 1, 2))
            key = graph.call_method("transpose", (key, 1, 2))
        span = {"image": (opened.start, opened.length)}
        if "heads" in method.wants():
            scale = attention.operation.kwargs.get("scale")
            read = graph.call_function(attention_heads, (query, key), span | {"text": text, "scale": scale})
            opened.reads = "heads"
        else:
            read = graph.call_function(received_attention, (query, key), span | {"probes": method.probes()})
    output = next(iter(reversed(graph.nodes)))
    output.args = ((output.args[0], read),)
    opened.scored = plan


INSTRUMENT_ATTENTION = Pass("instrument_attention", exact=False, run=instrument_attention)
