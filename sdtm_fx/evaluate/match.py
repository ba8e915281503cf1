"""Budgets: what is wanted, what a recipe comes to, and what is out of reach.

A budget is a speedup by total MACs: those of the dense model over those of the recipe, over all steps, the dense
ones included, and with what planning costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.recipe.schema import Recipe

Knob: TypeAlias = Literal["ratio", "interval", "leading", "threshold"]
"""What is turned: ``ratio`` multiplies every ratio of the recipe by one factor and so keeps the shape of its
curve; ``interval`` is `keep_dense.every_steps`, fractions included, so that dense steps stay spread evenly (the
leading and trailing dense steps of the recipe stay); ``leading`` is `keep_dense.first_steps`, the number of dense
steps before anything is left out; ``threshold`` is that of SDTM*, found by sampling."""

TOLERANCE = 0.02
"""A match within this relative difference is called close; a knob with few settings may miss it."""

SLACK = 0.10
"""A budget further than this outside of what a knob can reach is an error."""


class BudgetError(SdtmFxError):
    """A budget is out of reach of a knob, or the knob does nothing to this recipe."""


@dataclass(frozen=True)
class Match:
    """A recipe whose cost was tuned.

    Attributes:
        recipe: The recipe, with the knob where it belongs.
        knob: What was turned.
        value: To what: a factor, a number of steps, or a score.
        wanted: The budget.
        speedup: What is reached: dense over total MACs.
    """

    recipe: Recipe
    knob: Knob
    value: float
    wanted: float
    speedup: float

    @property
    def close(self) -> bool:
        """Whether the budget is met within `TOLERANCE`."""
        return abs(self.speedup / self.wanted - 1) <= TOLERANCE


def check_wanted(recipe: Recipe, speedup: float) -> None:
    """Raise BudgetError unless a budget is a speedup."""
    if not speedup > 1:
        raise BudgetError(f"{recipe.name}: found a budget of {speedup:g}x; accepted a speedup above 1")


def closest(
    recipe: Recipe, knob: Knob, tried: Sequence[tuple[float, float]], wanted: float, where: str
) -> tuple[float, float]:
    """Return the setting, and its speedup, that comes closest to a budget.

    Args:
        recipe: Named in errors.
        knob: What was turned.
        tried: Settings and their speedups.
        wanted: The budget.
        where: At what size.

    Raises:
        BudgetError: None comes near it.
    """
    check_reach(f"{recipe.name}: knob {knob!r}", [found for _, found in tried], wanted, where)
    return min(tried, key=lambda setting: (abs(setting[1] - wanted), setting[0]))


def check_reach(what: str, reached: Sequence[float], wanted: float, where: str) -> None:
    """Raise unless a budget lies in what can be reached, or close to it.

    Args:
        what: What is turned.
        reached: Speedups of all settings.
        wanted: The budget.
        where: At what size.

    Raises:
        BudgetError: It does not.
    """
    if not reached:
        raise BudgetError(f"{what}: found no setting that saves anything {where}; accepted more steps")
    least, most = min(reached), max(reached)
    if not least * (1 - SLACK) <= wanted <= most * (1 + SLACK):
        raise BudgetError(
            f"{what}: found a budget of {wanted:g}x; accepted {least:.2f}x to {most:.2f}x, which is the reach {where}"
        )
