"""Weigh slots: proportional attention, log(size of its slot) on the logits of every merged image key.

With it, a slot of equal tokens counts for as much as they did. Both kinds of attention sites have such keys: those
that run on merged tokens, and those of which keys alone are merged.
"""

from __future__ import annotations

from sdtm_fx.passes.gather_rotary import site_plan
from sdtm_fx.rewriting.opening import open_site, reads_image
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import key_ops
from sdtm_fx.sites.locating import Site


def weigh_slots(work: BlockWork) -> int:
    """Add the bias at each attention site of the stage that has image keys; returns the number of sites."""
    if not (work.merges and work.recipe.plan.proportional):
        return 0
    sites = [site for site in work.sites.values() if site.spec.kind == "attention"]
    return sum(_weigh(work, site) for site in sites)


def _weigh(work: BlockWork, site: Site) -> bool:
    plan = site_plan(site) if site.spec.merge == "tokens" else None
    opened = open_site(work, site)
    if not reads_image(opened):
        del work.opened[site.spec.id]
        work.notes.append(
            f"{site.local} attends to text, whose keys are no slots; proportional attention changes nothing there"
        )
        return False
    opened.refuse_mask("sizes of slots")
    opened.outer_plan = plan or opened.outer_plan
    graph = opened.attention.graph
    with graph.inserting_before(opened.attention.operation):
        bias = graph.call_function(key_ops.slot_bias, (opened.plan, opened.key, opened.start, opened.axis))
    opened.add_bias(bias)
    return True


WEIGH_SLOTS = Pass("weigh_slots", exact=False, run=weigh_slots)
