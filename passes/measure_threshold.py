"""Measure the threshold: on dense steps of SDTM*, count at the first site what could be merged.

``f(x)`` becomes ``f(measure(x))``, where measure hands x on unchanged and notes a count. The next step
reads it on the host and takes the largest ratio that the count allows.
"""

from __future__ import annotations

from sdtm_fx.passes.insert_merges import feed, image_place, site_metric
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import ops


def measure_threshold(work: BlockWork) -> int:
    """Insert one measurement in front of the block's first site."""
    if work.variant.measure is None:
        return 0
    wanted = work.recipe.stages[work.variant.measure].sites
    order = {node: i for i, node in enumerate(work.graph.nodes)}
    sites = sorted((s for s in work.sites.values() if s.spec.id in wanted), key=lambda s: order[s.node])
    if not sites:
        return 0
    site = sites[0]
    with work.graph.inserting_before(site.node):
        metric = site_metric(work, site, image_place(work, site))
        measured = work.graph.call_function(ops.measure_tokens, (work.ctx, site.entry, metric))
    feed(site, measured)
    return 1


MEASURE_THRESHOLD = Pass("measure_threshold", exact=True, run=measure_threshold)
