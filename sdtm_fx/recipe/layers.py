"""Blocks that merge less than the others, or in another way."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sdtm_fx.recipe.part import Part, Text
from sdtm_fx.reductions import Reduce


class LayerRule(Part):
    """What is different in some blocks. A block takes each key from one rule at most."""

    match: Text
    """Blocks: a glob over their paths, or ``re:`` and an expression."""
    scale: Annotated[float, Field(ge=0, le=1)] | None = None
    """Part of the ratio that these blocks get, the same in every phase; 0 keeps them dense, absent is all of it."""
    reduce: Reduce | None = None
    """What becomes of the tokens of a slot in these blocks; absent: as the stage and its method have it."""
