"""What passes work on: the graph of one block structure, in one variant."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import fx

from sdtm_fx.base_plan import Unmerging
from sdtm_fx.capture.guards import expect
from sdtm_fx.errors import SiteError, nearest
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.sections import Stage
from sdtm_fx.recipe.span import SpanSpec
from sdtm_fx.rewriting.opening import OpenedSite
from sdtm_fx.rewriting.spans import SpanPlace
from sdtm_fx.runtime import ops, span_ops
from sdtm_fx.runtime.call import Variant
from sdtm_fx.sites.locating import Site, locate


@dataclass(frozen=True)
class SitePlace:
    """A site before its node is located: the recipe's words, and where the module is."""

    site_index: int
    local: str
    path: str


@dataclass
class BlockWork:
    """One block graph while passes rewrite it.

    Attributes:
        graph: The graph; passes change it in place.
        block: A block of this structure; it is not changed.
        recipe: The recipe.
        variant: Which steps the graph is for.
        places: Sites of the recipe in this block that this variant handles.
        span: What the block is in the span that this variant merges, if any.
        forecast: The same in a span that this variant forecasts, or stores for.
        attention_places: All attention sites in this block, handled or not: statistics are read there.
        sites: The located sites, by id; filled by the first pass.
        context: The placeholder of the `BlockContext`; added by the first pass.
        opened: The attention modules that passes have opened, by the id of their site.
        notes: Why something was not done, for `explain`.
    """

    graph: fx.Graph
    block: torch.nn.Module
    recipe: Recipe
    variant: Variant
    places: tuple[SitePlace, ...]
    attention_places: tuple[SitePlace, ...] = ()
    span: SpanPlace | None = None
    forecast: SpanPlace | None = None
    sites: dict[str, Site] = field(default_factory=dict)
    context: fx.Node | None = None
    opened: dict[str, OpenedSite] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def stage(self) -> Stage | None:
        """The stage that the graph merges for, None in a graph for dense steps."""
        return None if self.variant.stage is None else self.recipe.stages[self.variant.stage]

    @property
    def merges(self) -> bool:
        """Whether tokens are merged, as opposed to stored on a dense step or forecast altogether."""
        return self.stage is not None and self.stage.method.merges

    @property
    def unmerging(self) -> Unmerging:
        """What unmerging does to a slot, in the stage that the graph merges for, or stores features for."""
        index = self.variant.stage if self.variant.stage is not None else self.variant.refresh
        return Unmerging.COPY if index is None else self.recipe.stages[index].method.unmerging()

    @property
    def ctx(self) -> fx.Node:
        """The context placeholder."""
        assert self.context is not None, "locate_sites runs first"
        return self.context

    @property
    def inner_span(self) -> SpanSpec | None:
        """The span whose merged tokens the block runs on: its sites are inside of it."""
        if self.span is None:
            return None
        span = self.recipe.spans[self.span.span_index]
        return span if self.span.is_short(span) else None

    def site_at(self, place: SitePlace) -> Site:
        """The site at a place, whether this variant handles it or not.

        Raises:
            SiteError: The site is not what the recipe says.
        """
        spec = self.recipe.sites[place.site_index]
        if spec.id in self.sites:
            return self.sites[spec.id]
        return locate(self.graph, self.block, spec, place.local, place.path)

    @property
    def given(self) -> dict[str, fx.Node]:
        """The arguments that the block is given, by name; those that are None are not."""
        return {str(n.target): n for n in self.graph.nodes if n.op == "placeholder" and n is not self.context}

    def argument(self, name: str, key: str, whose: str) -> fx.Node:
        """The argument of the block that a key of a site or span names.

        Args:
            name: Of the argument.
            key: That names it.
            whose: The site or span, for messages.

        Raises:
            SiteError: The block is given no such argument.
        """
        given = self.given
        if name not in given:
            raise SiteError(
                f"{whose}: {type(self.block).__name__} is given no argument {name!r} for `{key}`; it is given "
                f"{', '.join(given)}{nearest(name, given)}"
            )
        return given[name]

    def drop_unused(self) -> None:
        """Remove what nothing uses any more, except what acts by itself (guards, stores, in-place work)."""
        self.graph.eliminate_dead_code(is_impure_node=_acts)

    def calls(self, *functions: Callable[..., object]) -> list[fx.Node]:
        """The nodes that call one of `functions`, in order."""
        return [n for n in self.graph.nodes if n.op == "call_function" and n.target in functions]


def _acts(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in (expect, operator.setitem, ops.store_feature, span_ops.begin_stream)
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return node.op in ("placeholder", "output")


@dataclass(frozen=True)
class Pass:
    """One graph rewrite.

    Attributes:
        name: What messages and `explain` call it.
        exact: Whether it leaves the computed function as it is (up to the shapes of matrix products).
        run: The rewrite; changes the work's graph and returns how often it applied.
    """

    name: str
    exact: bool
    run: Callable[[BlockWork], int]
