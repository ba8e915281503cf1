"""Insert merges: ``f(x)`` becomes ``unmerge(plan, f(merge(plan, x)))`` at every site.

Where keys alone are merged it becomes ``f(keys_of(plan, x))``: a mark that the plan is needed inside, which
`reduce_keys` takes away again. Nothing is unmerged there, so nothing is stored or forecast either.

Inside of a span the plan is one over its slots.

In a graph for dense steps, and where a stage forecasts its sites (ratio 1), only the way out is marked:
``unmerge(None, f(x))``. Later passes move that mark as they move every unmerge, so that features are stored
at the very place where they are blended, and the last pass turns it into the storing or the forecast.
"""

from __future__ import annotations

from torch import fx

from sdtm_fx.base_plan import Unmerging
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import ops, stack_ops
from sdtm_fx.sites.locating import Site


def insert_merges(work: BlockWork) -> int:
    """Merge in front of and unmerge behind each site; returns the number of sites."""
    if work.variant.stage is None and work.variant.refresh is None:
        return 0
    for site in work.sites.values():
        if site.spec.merge == "keys":
            if work.merges:
                _mark_keys(work, site)
            continue
        plan = _merge(work, site) if work.merges else None
        mark(work.graph, plan, site.exit, _feature_name(work, site))
        if _is_skipped(work):
            for index, side in enumerate(site.side):
                mark(work.graph, None, side, f"{site.spec.id}.{index}")
    return len(work.sites)


def _feature_name(work: BlockWork, site: Site) -> str:
    """What the features of a site are called: its id, and how they are unmerged where that is no copy.

    The mark then moves less far, so a stage of another kind has no use for what is stored there.
    """
    kind = work.unmerging
    return site.spec.id if kind is Unmerging.COPY else f"{site.spec.id}:{kind.value}"


def _is_skipped(work: BlockWork) -> bool:
    """Whether the stage that this graph serves, or stores for, forecasts its sites altogether."""
    index = work.variant.stage if work.variant.stage is not None else work.variant.refresh
    return index is not None and not work.recipe.stages[index].method.merges


def mark(graph: fx.Graph, plan: fx.Node | None, exit_: fx.Node, name: str) -> fx.Node:
    """Put an unmerge behind a value, for all who use it."""
    users = list(exit_.users)
    with graph.inserting_after(exit_):
        unmerged = graph.call_function(ops.unmerge_tokens, (plan, exit_))
    unmerged.meta["val"] = exit_.meta["val"]
    unmerged.meta["site"] = name
    for user in users:
        user.replace_input_with(exit_, unmerged)
    return unmerged


def _merge(work: BlockWork, site: Site) -> fx.Node:
    graph = work.graph
    with graph.inserting_before(site.node):
        plan, length = _plan(work, site)
        if length is not None:
            plan = graph.call_function(ops.after_prefix, (plan, length))
        merged = graph.call_function(ops.merge_tokens, (plan, site.entry))
    feed(site, merged)
    return plan


def _mark_keys(work: BlockWork, site: Site) -> None:
    with work.graph.inserting_before(site.node):
        plan, _ = _plan(work, site)
        marked = work.graph.call_function(ops.keys_of, (plan, site.entry))
    feed(site, marked)


def _plan(work: BlockWork, site: Site) -> tuple[fx.Node, fx.Node | None]:
    """Insert the plan over the image tokens of a site; returns the length of what stands in front of them, too."""
    graph = work.graph
    metric = metric_argument(work, site)
    length = None if site.spec.prefix is None else prefix_length(work, site)
    if metric is None:
        metric = site.entry
        if length is not None:
            metric = graph.call_function(ops.image_tokens, (site.entry, length))
    span = work.inner_span
    if span is not None:
        return graph.call_function(stack_ops.plan_slots, (work.ctx, metric, span.id)), length
    return graph.call_function(ops.plan_tokens, (work.ctx, metric)), length


def feed(site: Site, tokens: fx.Node) -> None:
    """Let a site's module take other tokens, which look like its own: rank and width are what passes ask for."""
    tokens.meta["val"] = site.entry.meta["val"]
    if isinstance(site.slot, int):
        site.node.update_arg(site.slot, tokens)
    else:
        site.node.update_kwarg(site.slot, tokens)


def prefix_length(work: BlockWork, site: Site) -> fx.Node:
    """Insert the number of tokens in front of the image: the length of a block argument."""
    argument = work.argument(str(site.spec.prefix), "prefix", f"site {site.spec.id!r}")
    return work.graph.call_method("size", (argument, 1))


def metric_argument(work: BlockWork, site: Site) -> fx.Node | None:
    """The block argument that tokens are compared by, None where the site's own input is."""
    if site.spec.metric is None:
        return None
    return work.argument(site.spec.metric, "metric", f"site {site.spec.id!r}")


INSERT_MERGES = Pass("insert_merges", exact=False, run=insert_merges)
