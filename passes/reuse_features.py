"""Reuse features: what an unmerge becomes in the end.

| graph for | ``unmerge(plan, y)`` becomes |
|---|---|
| a dense step that refreshes | ``store(y)`` |
| a stage that merges, with reuse | ``weight * unmerge(plan, y) + (1 - weight) * forecast`` at merged positions |
| a stage that skips (ratio 1) | ``forecast``, and what computed y goes away |
"""

from __future__ import annotations

from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import ops


def reuse_features(work: BlockWork) -> int:
    """Lower every unmerge; returns how many became something else."""
    if work.merges and work.recipe.reuse is None:
        return 0
    unmerges = work.calls(ops.unmerge_tokens)
    for node in unmerges:
        plan, value = node.args
        site = node.meta["site"]
        with work.graph.inserting_before(node):
            if work.merges:
                lowered = work.graph.call_function(ops.blend_forecast, (work.ctx, plan, value, site))
            elif work.variant.refresh is not None:
                lowered = work.graph.call_function(ops.store_feature, (work.ctx, value, site))
            else:
                lowered = work.graph.call_function(ops.forecast_feature, (work.ctx, site))
        lowered.meta.update(node.meta)
        node.replace_all_uses_with(lowered)
        work.graph.erase_node(node)
    work.drop_unused()
    return len(unmerges)


REUSE_FEATURES = Pass("reuse_features", exact=False, run=reuse_features)
