"""Merging inside of a span: sites that run on fewer tokens than the span has kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sdtm_fx.methods import AnyMethod
from sdtm_fx.recipe.part import Part, Removed
from sdtm_fx.reductions import Reduce


class InsideSpec(Part):
    """Sites in the blocks of a span that merge its slots once more, and unmerge them again.

    A slot counts for as many tokens as it stands for. There is no grid inside of a span: methods see the slots as
    one row, in the order of the span's plan. Plans are made at every step, and shared by the sites of a block, or of
    `plan.every_layers` blocks.
    """

    sites: Annotated[tuple[str, ...], Field(min_length=1)]
    """Ids of the sites that are merged where they lie inside a span of the stage; outside of spans nothing changes."""
    method: AnyMethod
    """What decides which slots are merged: a method that needs no grid, for instance ``{name: tome, window: [1, 2]}``,
    in which every other slot absorbs."""
    ratio: Removed
    """Fraction of the slots of the span that is removed; kept counts are multiples of `plan.round_to` if possible."""
    reduce: Reduce | None = None
    """What becomes of the slots that are merged; absent: as the method has it, which is their mean, each slot counted
    as many times as it has tokens, unless it says else."""
