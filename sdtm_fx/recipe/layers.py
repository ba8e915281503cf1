"""Blocks that merge less than the others, or in another way."""

from __future__ import annotations

from typing import Annotated, Any

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


_YOUNGER: dict[str, object] = {"gate": "auto", "layers": []}
_YOUNGER_IN = {"sites": ("metric",), "stages": ("reduce",)}


def without_younger(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a recipe's data the keys that came after version 1 and say nothing.

    Recipes that do not use them keep the fingerprint that they had.

    Args:
        data: As `Recipe.to_data` returns it.
    """
    kept = {key: value for key, value in data.items() if key not in _YOUNGER or value != _YOUNGER[key]}
    for section, names in _YOUNGER_IN.items():
        kept[section] = [
            {key: value for key, value in part.items() if key not in names or value is not None}
            for part in data[section]
        ]
    return kept
