"""Joined parts: what a concatenation brings together in front of a projection, and whether it is taken apart there.

Parts that one plan unmerged may be joined while merged, and stored as one. Where some stage reads one of them without
the others (FLUX: the MLP of single blocks early, both branches late), they have to be stored by themselves: behind
their own share of the projection, where it can be cut.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from sdtm_fx.passes.linear_layer import obstacle
from sdtm_fx.rewriting.serving import parts_read_alone
from sdtm_fx.rewriting.work import BlockWork
from sdtm_fx.runtime import ops


def parts_of(cat: fx.Node) -> list[fx.Node]:
    """What a ``torch.cat`` joins."""
    return list(cat.args[0])  # type: ignore[arg-type]


def is_channel_cat(node: fx.Node) -> bool:
    """Whether a ``torch.cat`` joins along the last axis."""
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return dim in (-1, node.meta["val"].ndim - 1)


def unmerged_parts(cat: fx.Node) -> list[fx.Node]:
    """The parts that are unmerged for this concatenation alone."""
    return [p for p in parts_of(cat) if p.target is ops.unmerge_tokens and len(p.users) == 1]


def projection_of(cat: fx.Node) -> fx.Node | None:
    """The module that alone takes a concatenation along the channels."""
    users = list(cat.users)
    if not is_channel_cat(cat) or len(users) != 1 or users[0].op != "call_module":
        return None
    return users[0]


def can_be_cut(work: BlockWork, cat: fx.Node) -> bool:
    """Whether a concatenation goes into a projection whose weight passes may cut."""
    projection = projection_of(cat)
    if projection is None or not work.recipe.passes.split_projection:
        return False
    return obstacle(work.block.get_submodule(str(projection.target))) is None


def read_alone(work: BlockWork, parts: Sequence[fx.Node]) -> list[fx.Node]:
    """Of unmerged parts, those that some stage reads without the others, from the same dense steps."""
    names = frozenset(str(p.meta["site"]) for p in parts)
    if not names <= {site.id for site in work.recipe.sites}:
        return []  # several sites already, or what is left of a site beside its image tokens
    alone = parts_read_alone(work.recipe, work.variant, names)
    return [p for p in parts if p.meta["site"] in alone]


def is_taken_apart(work: BlockWork, cat: fx.Node) -> bool:
    """Whether the parts of a concatenation stay apart, each behind its share of the projection."""
    return can_be_cut(work, cat) and bool(read_alone(work, unmerged_parts(cat)))
