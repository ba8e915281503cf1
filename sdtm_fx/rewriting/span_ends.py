"""In which blocks spans begin and end, by the paths of the blocks alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from sdtm_fx.errors import NothingMatched, SiteError, nearest
from sdtm_fx.recipe.match import compile_match
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.span import SpanSpec


def covering_stages(recipe: Recipe, order: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Say by spans of which stages blocks are covered.

    Args:
        recipe: The recipe.
        order: Paths of the blocks with sites, in the order of execution.

    Returns:
        By path of the block, the names of the stages; blocks in no span are left out.

    Raises:
        NothingMatched: `first` or `last` of a span matches no block, or not as many as the other.
        SiteError: A span ends before it begins.
    """
    spans = {span.id: span for span in recipe.spans}
    covered: dict[str, tuple[str, ...]] = {}
    for stage in recipe.stages:
        for name in stage.sites:
            for first, last in span_ends(recipe.name, spans[name], list(order)) if name in spans else ():
                for path in order[first : last + 1]:
                    covered[path] = (*covered.get(path, ()), stage.name)
    return covered


def span_ends(recipe: str, span: SpanSpec, order: list[str]) -> list[tuple[int, int]]:
    """Find the first and the last block of every run that a span is, by number.

    Args:
        recipe: Name of the recipe, for messages.
        span: The span.
        order: Paths of the blocks with sites, in the order of execution.

    Raises:
        NothingMatched: `first` or `last` matches no block, or not as many as the other.
        SiteError: A run ends before it begins, or begins before the one in front has ended.
    """
    firsts, lasts = (_blocks(recipe, span, key, order) for key in ("first", "last"))
    where = f"recipe {recipe!r}: span {span.id!r}"
    if len(firsts) != len(lasts):
        raise NothingMatched(
            f"{where}: `first` matches {len(firsts)} blocks and `last` {len(lasts)}; they are paired in order"
        )
    pairs = list(zip(firsts, lasts, strict=True))
    least = 0 if span.enter == "start" else 1
    for first, last in pairs:
        if last - first < least:
            raise SiteError(
                f"{where} goes from {order[first]} to {order[last]}; with enter {span.enter!r} the last block is "
                f"{'the first one or a later one' if least == 0 else 'a later one than the first'}"
            )
    for (_, last), (first, _) in itertools.pairwise(pairs):
        if first <= last:
            raise SiteError(f"{where} begins at {order[first]} before it has ended at {order[last]}")
    return pairs


def _blocks(recipe: str, span: SpanSpec, key: str, order: list[str]) -> list[int]:
    wanted: int | str = getattr(span, key)
    if isinstance(wanted, int):
        if not -len(order) <= wanted < len(order):
            raise NothingMatched(
                f"recipe {recipe!r}: span {span.id!r}: `{key}`: there is no block {wanted}; the model has {len(order)}"
            )
        return [wanted % len(order)]
    accepts = compile_match(wanted)
    found = [number for number, path in enumerate(order) if accepts(path)]
    if not found:
        raise NothingMatched(
            f"recipe {recipe!r}: span {span.id!r}: `{key}`: {wanted!r} matches no block with sites; "
            f"the first is {order[0]}, the last {order[-1]}{nearest(wanted, order)}"
        )
    return found
