"""Recipes that were written by hand, brought to the budget by the one number that each of them offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdtm_fx.evaluate.budget import solve
from sdtm_fx.evaluate.match import BudgetError, Knob
from sdtm_fx.evaluate.schedule_costs import measure_costs
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.runtime.schedules import CallSize


@dataclass(frozen=True)
class Rival:
    """A recipe that a tuned one is compared with.

    Attributes:
        label: What it is called in tables.
        family: "merging", "caching" or "mixed", as of starting points.
        recipe: At the budget, or as close to it as its knob comes.
        speedup: Dense over total MACs.
    """

    label: str
    family: str
    recipe: Recipe
    speedup: float


def rivals_at(
    speedup: float, recipes: Sequence[Recipe], pipeline: Any, size: CallSize
) -> tuple[list[Rival], list[str]]:
    """Bring recipes to a budget: all ratios by one factor, or else by how far apart their dense steps lie.

    Args:
        speedup: Dense over total MACs that is wanted.
        recipes: Recipes for the pipeline's model.
        pipeline: Dense.
        size: Of its calls.

    Returns:
        The recipes, and of each that cannot come near the budget, why.

    Raises:
        SdtmFxError: What rewriting raises.
    """
    found: list[Rival] = []
    left_out: list[str] = []
    for recipe in recipes:
        costs = measure_costs(recipe, pipeline, size)
        reasons: list[str] = []
        for knob in _knobs(recipe):
            try:
                match = solve(recipe, costs, knob=knob, speedup=speedup)
            except BudgetError as error:
                reasons.append(str(error))
            else:
                found.append(Rival(f"{recipe.name} by hand", _family(recipe), match.recipe, match.speedup))
                break
        else:
            left_out.append("; ".join(reasons))
    return found, left_out


def _knobs(recipe: Recipe) -> tuple[Knob, ...]:
    """What may be turned, first what keeps more of the recipe."""
    if _family(recipe) == "caching":
        return ("interval",)
    return ("ratio",) if recipe.reuse is None else ("ratio", "interval")


def _family(recipe: Recipe) -> str:
    merging = [stage.method.merges for stage in recipe.stages]
    return "merging" if all(merging) else "mixed" if any(merging) else "caching"
