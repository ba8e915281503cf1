"""Matching budgets: one knob of a recipe is turned until its whole schedule costs what it should."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from sdtm_fx.evaluate.knobs import turn
from sdtm_fx.evaluate.match import TOLERANCE, Knob, Match, check_wanted, closest
from sdtm_fx.evaluate.schedule_costs import Costs, measure_costs, probe_size
from sdtm_fx.evaluate.threshold import sampled_speedup, solve_threshold
from sdtm_fx.recipe.schema import Recipe

_HALVINGS = 12


def match_budget(
    recipe: Recipe,
    pipeline: Any,
    *,
    speedup: float,
    knob: Knob,
    steps: int,
    height: int,
    width: int,
    guidance_scale: float | None = None,
    prompts: Sequence[str] = (),
) -> Match:
    """Turn one knob of a recipe until a whole generation costs what it should.

    Args:
        recipe: A recipe.
        pipeline: A diffusers pipeline, dense.
        speedup: Dense over total MACs that is wanted, more than 1.
        knob: What to turn.
        steps: Denoising steps.
        height: Pixels.
        width: Pixels.
        guidance_scale: Of the pipeline; None takes its default.
        prompts: What ``threshold`` samples to find out how much it merges, one image each; a few suffice.

    Returns:
        The closest setting. It is `close` unless the knob has too few settings, as at few steps.

    Raises:
        BudgetError: The budget is out of reach; the text says what can be reached.
        SdtmFxError: What `rewrite` raises.
    """
    size = probe_size(
        pipeline, recipe, steps=steps, height=height, width=width, guidance_scale=guidance_scale
    )
    if knob == "threshold":
        measure = sampled_speedup(pipeline, prompts, size, height, width, guidance_scale)
        return solve_threshold(recipe, measure, speedup=speedup)
    return solve(recipe, measure_costs(recipe, pipeline, size), knob=knob, speedup=speedup)


def solve(recipe: Recipe, costs: Costs, *, knob: Knob, speedup: float) -> Match:
    """Turn ``ratio``, ``interval`` or ``leading`` by the cost model alone; see `match_budget`.

    Args:
        recipe: The recipe that `costs` was measured with, or one that differs in ratios and dense steps.
        costs: From `measure_costs`.
        knob: What to turn.
        speedup: Dense over total MACs that is wanted.

    Raises:
        BudgetError: The budget is out of reach.
    """
    check_wanted(recipe, speedup)
    settings, apply = turn(recipe, costs, knob)
    scanned = [(value, costs.speedup(apply(value))) for value in settings]
    saving = [(value, found) for value, found in scanned if found > 1 + 1e-6]
    if knob == "ratio":
        saving += _halve(scanned, lambda value: costs.speedup(apply(value)), speedup)
    value, found = closest(recipe, knob, saving, speedup, f"at {costs.size.steps} steps")
    return Match(apply(value), knob, value, speedup, found)


def _halve(
    scanned: Sequence[tuple[float, float]], measure: Callable[[float], float], wanted: float
) -> list[tuple[float, float]]:
    """Bisect between the first two neighbours that the wanted speedup lies between."""
    pairs = itertools.pairwise(scanned)
    bracket = next(((a, b) for a, b in pairs if (a[1] - wanted) * (b[1] - wanted) <= 0), None)
    if bracket is None:
        return []
    (low, below), (high, _) = bracket
    found: list[tuple[float, float]] = []
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        speedup = measure(middle)
        found.append((middle, speedup))
        if abs(speedup / wanted - 1) <= TOLERANCE / 10:
            break
        low, high = (middle, high) if (speedup - wanted) * (below - wanted) > 0 else (low, middle)
    return found
