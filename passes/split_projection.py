"""Split projection: ``proj(cat[a, unmerge(m)])`` becomes ``proj_a(a) + unmerge(proj_m(m))``.

FLUX single blocks join attention and MLP in one projection. With attention dense and the MLP merged, the
weight is cut between the two, so the MLP's part of the product runs on merged tokens only. Exact up to the
order of the sum, whatever unmerging mixes: the bias stays with a dense part.

Where both are forecast, and another stage forecasts the MLP alone, the weight is cut all the same, so that both
stages read one feature of it.
"""

from __future__ import annotations

import functools
import operator

import torch
from torch import fx

from sdtm_fx.passes.joined_parts import is_taken_apart, parts_of, projection_of, read_alone, unmerged_parts
from sdtm_fx.passes.linear_layer import obstacle
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import ops


def split_projection(work: BlockWork) -> int:
    """Split each plain linear layer behind a concatenation with one unmerged part, or with parts that stay apart."""
    if not work.recipe.passes.split_projection:
        return 0
    return sum(_split(work, cat) for cat in work.calls(torch.cat))


def _split(work: BlockWork, cat: fx.Node) -> bool:
    projection, unmerged = projection_of(cat), unmerged_parts(cat)
    if projection is None or not (len(unmerged) == 1 or (unmerged and is_taken_apart(work, cat))):
        return False
    if sum(p.target is ops.unmerge_tokens for p in parts_of(cat)) != len(unmerged):
        return False  # a part that others use, too
    path = str(projection.target)
    why_not = obstacle(work.block.get_submodule(path))
    if why_not is not None:
        work.notes.append(f"{path} is not split: {why_not}; only a plain Linear can be cut")
        return False
    _rewrite(work, cat, projection, path)
    return True


def _rewrite(work: BlockWork, cat: fx.Node, projection: fx.Node, path: str) -> None:
    graph, parts, unmerged = work.graph, parts_of(cat), unmerged_parts(cat)
    # A part that a stage reads alone is stored without the bias there, so it is everywhere.
    bare = unmerged if len(unmerged) < len(parts) else read_alone(work, unmerged)
    biased = next((index for index, part in enumerate(parts) if part not in bare), None)
    with graph.inserting_before(projection):
        weights = graph.create_node("get_attr", path)
        # Widths are read off the parts as they run: blocks of one structure may differ in width.
        sources = [part.args[1] if part in unmerged else part for part in parts]
        shares = []
        for index, (part, source) in enumerate(zip(parts, sources, strict=True)):
            before = tuple(sources[:index])
            share = graph.call_function(ops.linear_part, (weights, source, before, index == biased))
            if part in unmerged:
                share = graph.call_function(ops.unmerge_tokens, (part.args[0], share))
                share.meta.update(val=projection.meta["val"], site=part.meta["site"])
            shares.append(share)
        dense = [share for share in shares if share.target is not ops.unmerge_tokens]
        joined = functools.reduce(
            lambda total, share: graph.call_function(operator.add, (total, share)),
            [*dense, *(share for share in shares if share not in dense)],
        )
        if biased is None and work.block.get_submodule(path).bias is not None:
            bias = graph.create_node("get_attr", f"{path}.bias")
            joined = graph.call_function(operator.add, (joined, bias))
    joined.meta["val"] = projection.meta["val"]
    projection.replace_all_uses_with(joined)
    work.drop_unused()


SPLIT_PROJECTION = Pass("split_projection", exact=True, run=split_projection)
