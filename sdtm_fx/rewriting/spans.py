"""Which blocks a recipe's spans cover, confirmed on the model's own graph."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from sdtm_fx.capture.arguments import Signature
from sdtm_fx.capture.blocks import BlockCall
from sdtm_fx.errors import SiteError, nearest
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.span import SpanSpec
from sdtm_fx.rewriting.handing import Handed, handed_on
from sdtm_fx.rewriting.span_ends import span_ends
from sdtm_fx.runtime.call import Variant
from sdtm_fx.runtime.inside import merging_inside


@dataclass(frozen=True)
class SpanPlace:
    """What a block is in a span; blocks in equal places share their graphs.

    Attributes:
        span_index: The span in the recipe.
        first: Whether the span begins in this block.
        last: Whether it ends here.
        entry: Number of the block in which it begins.
        exit: Number of the block in which it ends.
        handed: What the blocks hand on: index of the output (None: what is returned is no tuple), and the argument
            of the next block that it becomes.
    """

    span_index: int
    first: bool
    last: bool
    entry: int = field(compare=False)
    exit: int = field(compare=False)
    handed: Handed = ()

    def is_short(self, span: SpanSpec) -> bool:
        """Whether the block runs on merged tokens."""
        return not self.first or span.enter == "start"


Spans = tuple[SpanPlace, ...]


def active_span(recipe: Recipe, places: Spans, variant: Variant) -> SpanPlace | None:
    """The span that a block is in, in a variant that merges; at most one, and none where it is left out."""
    if variant.stage is None or not recipe.stages[variant.stage].method.merges:
        return None
    return _span_of(recipe, places, variant.stage, variant)


def forecast_span(recipe: Recipe, places: Spans, variant: Variant) -> SpanPlace | None:
    """The span that a variant forecasts, or stores for on a dense step; none where it is left out."""
    stage = variant.refresh if variant.stage is None else variant.stage
    if stage is None or recipe.stages[stage].method.merges:
        return None
    return _span_of(recipe, places, stage, variant)


def any_span(recipe: Recipe, places: Spans, variant: Variant) -> SpanPlace | None:
    """The span that a block is in, in a variant that merges or forecasts."""
    return active_span(recipe, places, variant) or forecast_span(recipe, places, variant)


def _span_of(recipe: Recipe, places: Spans, stage: int, variant: Variant) -> SpanPlace | None:
    wanted = set(recipe.stages[stage].sites) - variant.left_out
    return next((place for place in places if recipe.spans[place.span_index].id in wanted), None)


def sites_inside(recipe: Recipe, stage: int | None) -> tuple[str, ...]:
    """Ids of the sites that a stage merges further where they lie inside of its spans."""
    inside = None if stage is None else merging_inside(recipe.stages[stage])
    return () if inside is None else inside.sites


def uses_spans(recipe: Recipe) -> bool:
    """Whether any stage merges by a span."""
    ids = {span.id for span in recipe.spans}
    return any(name in ids for stage in recipe.stages for name in stage.sites)


def resolve_spans(
    model: torch.nn.Module,
    recipe: Recipe,
    calls: Sequence[BlockCall],
    kept: Collection[str],
    sites: Mapping[str, Collection[str]],
    ruled: Collection[str] = (),
) -> dict[str, Spans]:
    """Find the blocks of every span that a stage uses.

    Args:
        model: The model.
        recipe: The recipe.
        calls: The calls of blocks in the model's own graph, in order.
        kept: Blocks that the recipe keeps dense.
        sites: By path of a block, the ids of the sites in it.
        ruled: Blocks that `layers` of the recipe says something about.

    Returns:
        By path of the block, what it is in the spans of the recipe.

    Raises:
        NothingMatched: `first` or `last` matches no block, or not as many as the other.
        SiteError: A span is not what the recipe says, or meets another span or a site in one stage.
    """
    used = {name for stage in recipe.stages for name in stage.sites}
    order = list(dict.fromkeys(call.path for call in calls))
    nodes = {call.path: call.node for call in calls}
    found: dict[str, Spans] = {}
    for index, span in enumerate(recipe.spans):
        if span.id not in used:
            continue
        forecast = any(span.id in stage.sites and not stage.method.merges for stage in recipe.stages)
        for first, last in span_ends(recipe.name, span, order):
            blocks = [nodes[path] for path in order[first : last + 1]]
            for one, other in itertools.pairwise(blocks):
                _check_link(model, span, one, other)
            links = handed_on(model, span, blocks) if forecast else ()
            for number in range(first, last + 1):
                path = order[number]
                if path in ruled:
                    raise SiteError(
                        f"span {span.id!r} covers {path}, about which `layers` has a rule; the blocks of a span "
                        "remove the same tokens, so accepted are rules about other blocks"
                    )
                if path in kept:
                    why = (
                        "blocks that are forecast as one are so all, or none: let the span begin or end beside it"
                        if forecast
                        else "a block inside a span has no dense tokens"
                    )
                    raise SiteError(
                        f"span {span.id!r} covers {path}, which keep_dense.layers keeps dense; {why}"
                    )
                handed = links[number - first] if links else ()
                place = SpanPlace(index, number == first, number == last, first, last, handed)
                found[path] = (*found.get(path, ()), place)
    _check_stages(recipe, found, sites)
    return found


def _check_link(model: torch.nn.Module, span: SpanSpec, one: fx.Node, other: fx.Node) -> None:
    """Check that what a block returns is what the next one gets, and nothing else reads it."""
    block = model.get_submodule(str(other.target))
    signature = Signature.of(type(block).forward)
    where = f"span {span.id!r}: between {one.target} and {other.target}"
    if span.input not in signature.names:
        raise SiteError(
            f"span {span.id!r}: {type(block).__name__} has no argument {span.input!r}; it has "
            f"{', '.join(signature.names)}{nearest(span.input, signature.names)}"
        )
    given = signature.bind(other.args, other.kwargs)[span.input]
    from_one = given is one if span.output is None else _is_output(given, one, span.output)
    if not from_one:
        what = given.target if isinstance(given, fx.Node) else given
        raise SiteError(
            f"{where} the image tokens are not handed on as they are: {other.target} gets {what!s}; "
            "is `output` right, and does every block between them have a site?"
        )
    others = [user for user in given.users if user is not other]
    if others:
        raise SiteError(
            f"{where} the model reads the image tokens too ({others[0].target!s}); a span has merged them "
            "there, or not computed them"
        )


def _is_output(node: object, call: fx.Node, output: int) -> bool:
    return isinstance(node, fx.Node) and node.target is operator.getitem and node.args == (call, output)


def _check_stages(recipe: Recipe, found: Mapping[str, Spans], sites: Mapping[str, Collection[str]]) -> None:
    for stage in recipe.stages:
        merged_inside: set[str] = set()
        for path, places in found.items():
            active = [p for p in places if recipe.spans[p.span_index].id in stage.sites]
            if not active:
                continue
            ids = [recipe.spans[place.span_index].id for place in active]
            if len(ids) > 1:
                raise SiteError(f"stage {stage.name!r}: spans {ids[0]!r} and {ids[1]!r} both cover {path}")
            further = set() if stage.inside is None else set(stage.inside.sites) & set(sites[path])
            short = active[0].is_short(recipe.spans[active[0].span_index])
            outside = [
                site for site in stage.sites if site in sites[path] and not (short and site in further)
            ]
            if outside:
                why = (
                    "a block that is forecast runs none of its sites"
                    if not stage.method.merges
                    else "what merges the slots of a span further is said by `inside` of the stage: its sites, method "
                    "and ratio"
                    if short
                    else "the block merges its tokens once, for the span that begins at its end"
                )
                raise SiteError(
                    f"stage {stage.name!r}: site {outside[0]!r} lies in {path}, which span {ids[0]!r} covers; {why}"
                )
            merged_inside |= further if short else set()
        missed = [] if stage.inside is None else [s for s in stage.inside.sites if s not in merged_inside]
        if missed:
            raise SiteError(
                f"stage {stage.name!r}: inside: site {missed[0]!r} lies in no block that runs on the slots of a span "
                "of this stage"
            )
