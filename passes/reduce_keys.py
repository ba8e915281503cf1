"""Reduce keys: attention looks at fewer image keys and values, and queries stay as they are (ToDo and relatives).

Inside the attention module, keys and values become ``[text, merge(plan, image)]``, behind norms and rotary
embedding. There is nothing to unmerge. What is saved is the products with keys and values, QK' and AV, in
proportion to the removed tokens; the projections to keys and values stay whole. A mask that the module has of its own,
for padding or for regions, follows its keys.
"""

from __future__ import annotations

from torch import fx

from sdtm_fx.errors import SiteError
from sdtm_fx.passes.insert_merges import feed
from sdtm_fx.rewriting.opening import OpenedSite, is_causal, open_site, reads_image
from sdtm_fx.rewriting.work import BlockWork, Pass
from sdtm_fx.runtime import key_ops, mask_ops, ops
from sdtm_fx.sites.locating import Site


def reduce_keys(work: BlockWork) -> int:
    """Merge keys and values at each site that says so; returns the number of sites."""
    if not work.merges:
        return 0
    sites = [site for site in work.sites.values() if site.spec.merge == "keys"]
    for site in sites:
        plan = _take_plan(work, site)
        opened = open_site(work, site)
        _check(opened)
        opened.outer_plan = plan
        _reduce(opened)
    return len(sites)


def _take_plan(work: BlockWork, site: Site) -> fx.Node:
    """The plan that the mark at a site names; the mark goes away."""
    mark = next(n for n in site.node.all_input_nodes if n.target is ops.keys_of)
    plan = mark.all_input_nodes[0]
    feed(site, site.entry)
    work.graph.erase_node(mark)
    return plan


def _check(opened: OpenedSite) -> None:
    if not reads_image(opened):
        raise SiteError(
            f"{opened.where}: its keys do not come from the image tokens (cross-attention: they are text), and text "
            "is never merged; accepted: `merge: tokens`, which merges the queries, or another site"
        )
    if is_causal(opened.attention.operation):
        raise SiteError(f"{opened.where}: attention is causal, which fewer keys do not combine with")


def _check_mask(opened: OpenedSite, mask: fx.Node) -> None:
    found, keys = mask.meta["val"].shape, opened.attention.key.meta["val"].shape
    if len(found) > len(keys) or found[-1] not in (1, keys[opened.axis]):
        raise SiteError(
            f"{opened.where}: attention to {keys[opened.axis]} keys has a mask of shape {list(found)}; fewer keys "
            "combine with one that broadcasts to [batch, heads, queries, keys]"
        )


def _reduce(opened: OpenedSite) -> None:
    attention = opened.attention
    graph, operation = attention.graph, attention.operation
    with graph.inserting_before(operation):
        fewer = [
            graph.call_function(
                key_ops.reduce_keys, (opened.plan, rows, opened.start, opened.length, opened.axis)
            )
            for rows in (attention.key, attention.value)
        ]
        if opened.mask is not None:
            _check_mask(opened, opened.mask)
            opened.use_mask(
                graph.call_function(
                    mask_ops.reduce_mask, (opened.plan, opened.mask, fewer[0], opened.start, opened.length)
                )
            )
        opened.length = graph.call_function(key_ops.kept_slots, (opened.plan,))
    for position, (name, rows) in enumerate(zip(("key", "value"), fewer, strict=True), start=1):
        rows.meta["val"] = attention.key.meta["val"]
        if position < len(operation.args):
            operation.update_arg(position, rows)
        else:
            operation.update_kwarg(name, rows)
    opened.key = fewer[0]


REDUCE_KEYS = Pass("reduce_keys", exact=False, run=reduce_keys)
