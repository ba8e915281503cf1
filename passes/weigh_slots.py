"""Weigh slots: proportional attention, log(size of its slot) on the logits of every merged image key.

With it, a slot of equal tokens counts for as much as they did. Both kinds of attention sites have such keys: those
that run on merged tokens, and those of which keys alone are merged. Inside of a span all attention has: its slots
count for their tokens, and where a site merges them further, for the tokens of all of them together. A mask that the
module has of its own stays: the bias is added to it.
"""

from __future__ import annotations

from torch import fx

from sdtm_fx.passes.gather_rotary import site_plan
from sdtm_fx.rewriting.opening import open_site, reads_image
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import key_ops, stack_ops
from sdtm_fx.sites.locating import Site


def weigh_slots(work: BlockWork) -> int:
    """Add the bias at each attention site of the stage that has image keys; returns the number of sites."""
    if not (work.merges and work.recipe.plan.proportional):
        return 0
    sites = [site for site in work.sites.values() if site.spec.kind == "attention"]
    if work.inner_span is not None:
        sites = [work.site_at(place) for place in work.attention_places]
        if not sites:
            work.notes.append(
                f"{type(work.block).__name__} runs on the slots of span {work.inner_span.id!r}, and the recipe names "
                "no attention site in it; proportional attention changes nothing there"
            )
    return sum(_weigh(work, site) for site in sites)


def _weigh(work: BlockWork, site: Site) -> bool:
    plan = _plan(work, site)
    opened = open_site(work, site)
    if not reads_image(opened):
        del work.opened[site.spec.id]
        work.notes.append(
            f"{site.local} attends to text, whose keys are no slots; proportional attention changes nothing there"
        )
        return False
    opened.outer_plan = plan or opened.outer_plan
    graph = opened.attention.graph
    with graph.inserting_before(opened.attention.operation):
        bias = graph.call_function(key_ops.slot_bias, (opened.plan, opened.key, opened.start, opened.axis))
    opened.add_bias(bias)
    return True


def _plan(work: BlockWork, site: Site) -> fx.Node | None:
    """The plan whose slots the keys are; None where it is known already, because keys alone were merged."""
    if site.spec.id in work.sites:
        return site_plan(site) if site.spec.merge == "tokens" else None
    assert work.inner_span is not None, "only there a site has slots that it does not merge itself"
    with work.graph.inserting_before(site.node):
        return work.graph.call_function(stack_ops.span_plan, (work.ctx, work.inner_span.id))


WEIGH_SLOTS = Pass("weigh_slots", exact=False, run=weigh_slots)
