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
    """Bring recipes to a budget: all ratios by one factor where something merges, else the distance of dense steps.

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
        family = _family(recipe)
        knob: Knob = "interval" if family == "caching" else "ratio"
        try:
            match = solve(recipe, measure_costs(recipe, pipeline, size), knob=knob, speedup=speedup)
        except BudgetError as error:
            left_out.append(str(error))
        else:
            found.append(Rival(f"{recipe.name} by hand", family, match.recipe, match.speedup))
    return found, left_out


def _family(recipe: Recipe) -> str:
    merging = [stage.method.merges for stage in recipe.stages]
    return "merging" if all(merging) else "mixed" if any(merging) else "caching"
