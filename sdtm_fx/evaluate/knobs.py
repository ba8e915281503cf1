"""Knobs that the cost model alone can turn: ratios by one factor, and where dense steps lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sdtm_fx.evaluate.match import BudgetError, Knob
from sdtm_fx.evaluate.schedule_costs import Costs
from sdtm_fx.grids import tokens_on
from sdtm_fx.recipe.ratio import ConstantRatio, CurveRatio, ListRatio, Ratio, peak
from sdtm_fx.recipe.schema import Recipe

_SCANNED = 12  # factors that a ratio is tried with before bisection; the cost need not grow evenly with it


def turn(recipe: Recipe, costs: Costs, knob: Knob) -> tuple[list[float], Callable[[float], Recipe]]:
    """The settings of a knob that are worth trying, and the recipe for a setting.

    Args:
        recipe: A recipe.
        costs: Measured with it.
        knob: ``ratio``, ``interval`` or ``leading``.

    Raises:
        BudgetError: The knob does nothing to this recipe, or is found by sampling.
    """
    if knob == "threshold":
        raise BudgetError(f"{recipe.name}: knob 'threshold' is found by sampling; use match_budget")
    turns = {"ratio": _turn_ratio, "interval": _turn_interval, "leading": _turn_leading}
    return turns[knob](recipe, costs)


def _turn_ratio(recipe: Recipe, costs: Costs) -> tuple[list[float], Callable[[float], Recipe]]:
    """Factors up to the largest that every stage can follow, and the recipe for a factor."""
    grid = costs.size.grid
    merging = [stage for stage in recipe.stages if stage.method.merges]
    peaks = [_peak_of(recipe, stage.ratio or recipe.ratio) for stage in merging]
    reach = [
        stage.method.capacity(grid) / tokens_on(grid) / highest
        for stage, highest in zip(merging, peaks, strict=True)
        if highest > 0
    ]
    if not reach:
        raise BudgetError(
            f"{recipe.name}: knob 'ratio': found no stage that merges; accepted knob 'interval'"
        )
    most = min(*reach, *(0.9999 / highest for highest in peaks))

    def apply(factor: float) -> Recipe:
        own = {
            s.name: {"ratio": _scaled(recipe, s.ratio, factor)} for s in recipe.stages if s.ratio is not None
        }
        return recipe.override({"ratio": _scaled(recipe, recipe.ratio, factor)}, stages=own)

    return [most * (number + 1) / _SCANNED for number in range(_SCANNED)], apply


def _peak_of(recipe: Recipe, ratio: Ratio) -> float:
    highest = peak(ratio)
    if highest is None:
        raise BudgetError(
            f"{recipe.name}: knob 'ratio': found curve 'full', which has no number to turn; "
            "accepted a curve with numbers"
        )
    return highest


def _scaled(recipe: Recipe, ratio: Ratio, factor: float) -> dict[str, Any]:
    def scale(value: float) -> float:
        return int(value * factor * 1e4) / 1e4  # down, so that what a method can reach stays in reach

    if isinstance(ratio, CurveRatio):
        return {"start": scale(ratio.start), "end": scale(ratio.end)}
    if isinstance(ratio, ConstantRatio):
        return {"start": scale(ratio.start)}
    if isinstance(ratio, ListRatio):
        return {"values": [scale(value) for value in ratio.values]}
    raise BudgetError(
        f"{recipe.name}: knob 'ratio': found a threshold; accepted a curve (knob 'threshold' turns it)"
    )


def _turn_interval(recipe: Recipe, costs: Costs) -> tuple[list[float], Callable[[float], Recipe]]:
    """Every number of evenly spread dense steps, as a distance, and the recipe for a distance."""
    if recipe.reuse is None:
        raise BudgetError(
            f"{recipe.name}: knob 'interval': found no reuse; accepted a recipe whose dense steps serve one"
        )
    steps = costs.size.steps

    def apply(every: float) -> Recipe:
        return recipe.override({"keep_dense.every_steps": int(every) if every == int(every) else every})

    return [_distance(steps, dense) for dense in range(steps - 1, 0, -1)], apply


def _turn_leading(recipe: Recipe, costs: Costs) -> tuple[list[float], Callable[[float], Recipe]]:
    """Every number of leading dense steps from the recipe's own on, and the recipe for a number."""
    own, last = recipe.keep_dense.first_steps, recipe.keep_dense.last_steps

    def apply(first: float) -> Recipe:
        return recipe.override({"keep_dense.first_steps": int(first)})

    return [float(first) for first in range(own, costs.size.steps - last)], apply


def _distance(steps: int, dense: int) -> float:
    """How far apart so many dense steps lie; rounded up, or one more of them would fit in."""
    return math.ceil(steps / dense * 1e4 - 1e-6) / 1e4
