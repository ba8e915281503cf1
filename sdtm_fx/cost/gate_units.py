"""What the cost gate decides at once: the blocks of a plan group, or the blocks of a span.

What sites inside of a span merge further is not weighed: it stays where the span stays, and goes where it goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sdtm_fx.cost.model import CostModel, MeasuredBlock
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.spans import any_span
from sdtm_fx.runtime.call import Variant


@dataclass(frozen=True)
class Unit:
    """Blocks of which a stage decides together.

    Attributes:
        blocks: In the order of execution; the first one makes the plan.
        is_span: Whether they are a span, whose blocks merge all or none; others share a plan, and choose each.
    """

    blocks: tuple[MeasuredBlock, ...]
    is_span: bool


def units(cost: CostModel, stage: int) -> Iterator[Unit]:
    """Yield what a stage decides at once. Spans that share a plan count as if each made its own."""
    recipe, found = cost.recipe, dict[tuple[bool, int, int], list[MeasuredBlock]]()
    for block in cost.blocks:
        place = any_span(recipe, block.program.spans, Variant(stage=stage))
        if place is None:
            key = (False, block.index // recipe.plan.every_layers, 0)
        else:
            key = (True, place.span_index, cost.span_entry(block, place.span_index))
        found.setdefault(key, []).append(block)
    for (is_span, _, _), blocks in found.items():
        yield Unit(tuple(blocks), is_span)


def stage_sites_in_span(recipe: Recipe, stage: int, block: MeasuredBlock) -> frozenset[str]:
    """Ids of the stage's sites in a block that is in a span; none where it is not."""
    if any_span(recipe, block.program.spans, Variant(stage=stage)) is None:
        return frozenset()
    here = {recipe.sites[place.site_index].id for place in block.program.places}
    return frozenset(recipe.stages[stage].sites) & here
