"""Gather rotary: where attention is merged, its position tables keep the rows of the tokens that represent a slot.

With ``passes.gather_rotary: false`` they keep as many rows as there are slots, from the top: for comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from sdtm_fx.capture.arguments import Signature
from sdtm_fx.errors import SiteError
from sdtm_fx.passes.insert_merges import stream_place
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import ops, rotary_ops
from sdtm_fx.sites.locating import Site


def gather_rotary(work: BlockWork) -> int:
    """Replace the tables of each merged site that names them; returns the number of sites."""
    if not work.merges:
        return 0
    # Where keys are merged, they are rotated before: their tables stay whole.
    sites = [s for s in work.sites.values() if s.spec.rotary is not None and s.spec.merge == "tokens"]
    for site in sites:
        name = str(site.spec.rotary)
        names = Signature.of(type(work.block.get_submodule(site.local)).forward).names
        slot = names.index(name) if name in names[: len(site.node.args)] else name
        tables = site.node.args[slot] if isinstance(slot, int) else site.node.kwargs.get(slot)
        if tables is None:
            raise SiteError(
                f"site {site.spec.id!r}: the block passes no {name!r} to {site.local}; "
                f"it passes {', '.join(map(str, site.node.kwargs))}"
            )
        if "batch" not in work.recipe.plan.share:
            raise SiteError(
                f"site {site.spec.id!r}: rotary tables have no batch axis, so merged attention needs one plan "
                "for the whole batch: add `batch` to plan.share"
            )
        plan = site_plan(site)
        with work.graph.inserting_before(site.node):
            if work.recipe.passes.gather_rotary:
                by = (plan, *_place(work, site))
                gathered = _map_tables(work.graph, rotary_ops.gather_rotary, by, tables)
            else:
                by = (plan, site.spec.rotary_axis)
                gathered = _map_tables(work.graph, rotary_ops.cut_rotary, by, tables)
        if isinstance(slot, int):
            site.node.update_arg(slot, gathered)
        else:
            site.node.update_kwarg(slot, gathered)
    return len(sites)


def _place(work: BlockWork, site: Site) -> tuple[Any, ...]:
    """Insert where the rows of image tokens are in the tables of a site; what goes without saying is left out."""
    place: tuple[Any, ...] = (*stream_place(work), site.spec.rotary_axis, site.spec.suffix is not None)
    while place and place[-1] in (0, False) and not isinstance(place[-1], fx.Node):
        place = place[:-1]
    return place


def site_plan(site: Site) -> fx.Node:
    """The plan over image tokens alone of a site that runs on merged tokens; what stands in front is left out."""
    merge = next(n for n in site.node.all_input_nodes if n.target is ops.merge_tokens)
    plan = merge.all_input_nodes[0]
    return plan.all_input_nodes[0] if plan.target is ops.place_plan else plan


def _map_tables(graph: fx.Graph, follow: Callable[..., Any], by: tuple[Any, ...], tables: Any) -> Any:
    if isinstance(tables, fx.Node):
        plan, *place = by
        gathered = graph.call_function(follow, (plan, tables, *place))
        gathered.meta["val"] = tables.meta["val"]
        return gathered
    return type(tables)(_map_tables(graph, follow, by, t) for t in tables)


GATHER_ROTARY = Pass("gather_rotary", exact=False, run=gather_rotary)
