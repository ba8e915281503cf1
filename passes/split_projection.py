"""Split projection: ``proj(cat[a, unmerge(m)])`` becomes ``proj_a(a) + unmerge(proj_m(m))``.

FLUX single blocks join attention and MLP in one projection. With attention dense and the MLP merged, the
weight is cut between the two, so the MLP's part of the product runs on merged tokens only. Exact up to the
order of the sum, whatever unmerging mixes: the bias stays with a dense part.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from sdtm_fx.passes.linear_layer import obstacle
from sdtm_fx.passes.sink_unmerge import is_channel_cat
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import ops


def split_projection(work: BlockWork) -> int:
    """Split each plain linear layer behind a concatenation with one unmerged part."""
    if not work.recipe.passes.split_projection:
        return 0
    return sum(_split(work, cat) for cat in work.calls(torch.cat))


def _split(work: BlockWork, cat: fx.Node) -> bool:
    parts = list(cat.args[0])  # type: ignore[arg-type]
    unmerged = [p for p in parts if p.target is ops.unmerge_tokens]
    users = list(cat.users)
    if not is_channel_cat(cat) or len(unmerged) != 1 or len(unmerged[0].users) != 1 or len(users) != 1:
        return False
    projection = users[0]
    if projection.op != "call_module":
        return False
    path = str(projection.target)
    linear = work.block.get_submodule(path)
    why_not = obstacle(linear)
    if why_not is not None:
        work.notes.append(f"{path} is not split: {why_not}; only a plain Linear can be cut")
        return False
    _rewrite(work, parts, unmerged[0], projection, path)
    return True


def _rewrite(
    work: BlockWork, parts: list[fx.Node], unmerged: fx.Node, projection: fx.Node, path: str
) -> None:
    graph, plan = work.graph, unmerged.args[0]
    with graph.inserting_before(projection):
        weights = graph.create_node("get_attr", path)
        total, merged = None, None
        # Widths are read off the parts as they run: blocks of one structure may differ in width.
        sources = [part.args[1] if part is unmerged else part for part in parts]
        for index, (part, source) in enumerate(zip(parts, sources, strict=True)):
            with_bias = total is None and part is not unmerged
            share = graph.call_function(ops.linear_part, (weights, source, tuple(sources[:index]), with_bias))
            if part is unmerged:
                merged = graph.call_function(ops.unmerge_tokens, (plan, share))
                merged.meta.update(val=projection.meta["val"], site=unmerged.meta["site"])
            else:
                total = share if total is None else graph.call_function(operator.add, (total, share))
        joined = graph.call_function(operator.add, (total, merged))
    joined.meta["val"] = projection.meta["val"]
    projection.replace_all_uses_with(joined)
    work.drop_unused()


SPLIT_PROJECTION = Pass("split_projection", exact=True, run=split_projection)
