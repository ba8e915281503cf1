"""Insert merges: ``f(x)`` becomes ``unmerge(plan, f(merge(plan, x)))`` at every site.

Where keys alone are merged it becomes ``f(keys_of(plan, x))``: a mark that the plan is needed inside, which
`reduce_keys` takes away again. Nothing is unmerged there, so nothing is stored or forecast either.

Inside of a span the plan is one over its slots.

In a graph for dense steps, and where a stage forecasts its sites (ratio 1), only the way out is marked:
``unmerge(None, f(x))``. Later passes move that mark as they move every unmerge, so that features are stored
at the very place where they are blended, and the last pass turns it into the storing or the forecast.
"""

from __future__ import annotations

from typing import TypeAlias

from torch import fx

from sdtm_fx.base_plan import Unmerging
from sdtm_fx.recipe.sections import REST
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import ops, stack_ops
from sdtm_fx.sites.locating import Site

Place: TypeAlias = tuple[fx.Node | int, fx.Node | int]
"""How many tokens stand in front of the image tokens that may be merged, and behind them."""
NOWHERE: Place = (0, 0)
"""The place of image tokens that are the whole sequence."""


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
        place = image_place(work, site)
        plan = _plan(work, site, place)
        if place != NOWHERE:
            plan = graph.call_function(ops.place_plan, (plan, *place))
        merged = graph.call_function(ops.merge_tokens, (plan, site.entry))
    feed(site, merged)
    return plan


def _mark_keys(work: BlockWork, site: Site) -> None:
    with work.graph.inserting_before(site.node):
        plan = _plan(work, site, image_place(work, site))
        marked = work.graph.call_function(ops.keys_of, (plan, site.entry))
    feed(site, marked)


def _plan(work: BlockWork, site: Site, place: Place) -> fx.Node:
    """Insert the plan over the image tokens of a site that may be merged."""
    metric, span = site_metric(work, site, place), work.inner_span
    if span is not None:
        return work.graph.call_function(stack_ops.plan_slots, (work.ctx, metric, span.id))
    return work.graph.call_function(ops.plan_tokens, (work.ctx, metric))


def site_metric(work: BlockWork, site: Site, place: Place) -> fx.Node:
    """Insert what the image tokens of a site are compared by: those that may be merged, [B, N, D]."""
    metric = metric_argument(work, site)
    return _cut(work, site.entry, place) if metric is None else stream_image(work, metric)


def stream_image(work: BlockWork, stream: fx.Node) -> fx.Node:
    """Insert the tokens of an image stream that may be merged: all but protected ones and references."""
    return _cut(work, stream, stream_place(work))


def stream_place(work: BlockWork) -> Place:
    """Insert how many protected tokens, and how many of references, stand around the others in an image stream."""
    return _before(work, 0), _behind(work, 0)


def _cut(work: BlockWork, tokens: fx.Node, place: Place) -> fx.Node:
    return tokens if place == NOWHERE else work.graph.call_function(ops.image_tokens, (tokens, *place))


def feed(site: Site, tokens: fx.Node) -> None:
    """Let a site's module take other tokens, which look like its own: rank and width are what passes ask for."""
    tokens.meta["val"] = site.entry.meta["val"]
    if isinstance(site.slot, int):
        site.node.update_arg(site.slot, tokens)
    else:
        site.node.update_kwarg(site.slot, tokens)


def image_place(work: BlockWork, site: Site) -> Place:
    """Insert how many tokens stand in front of those that may be merged, and behind them, in the input of a site.

    Sides that a block argument tells the length of are taken from it, so that the sum is checked. What is unknown is
    what is left of the sequence.
    """
    spec = site.spec
    before = _before(work, _length(work, site, "prefix", spec.prefix))
    behind = _behind(work, _length(work, site, "suffix", spec.suffix))
    span = () if work.inner_span is None else (work.inner_span.id,)
    if spec.prefix == REST:
        before = work.graph.call_function(ops.remaining, (work.ctx, site.entry, behind, *span))
    if spec.suffix == REST:
        behind = work.graph.call_function(ops.remaining, (work.ctx, site.entry, before, *span))
    return before, behind


def _length(work: BlockWork, site: Site, key: str, argument: str | None) -> fx.Node | int:
    """The length of the block argument that a key of a site names; 0 where it names none."""
    if argument is None or argument == REST:
        return 0
    node = work.argument(argument, key, f"site {site.spec.id!r}")
    return work.graph.call_method("size", (node, 1))


def _before(work: BlockWork, prefix: fx.Node | int) -> fx.Node | int:
    if not work.recipe.tokens.protect.first_frames:
        return prefix
    return work.graph.call_function(ops.before_image, (work.ctx, prefix))


def _behind(work: BlockWork, suffix: fx.Node | int) -> fx.Node | int:
    if not work.recipe.tokens.has_references:
        return suffix
    return work.graph.call_function(ops.behind_image, (work.ctx, suffix))


def metric_argument(work: BlockWork, site: Site) -> fx.Node | None:
    """The block argument that tokens are compared by, None where the site's own input is."""
    if site.spec.metric is None:
        return None
    return work.argument(site.spec.metric, "metric", f"site {site.spec.id!r}")


INSERT_MERGES = Pass("insert_merges", exact=False, run=insert_merges)
