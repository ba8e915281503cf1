"""Matching budgets: one knob of a recipe is turned until its whole schedule costs what it should.

A budget is a speedup by total MACs: those of the dense model over those of the recipe, over all steps, the dense
ones included, and with what planning costs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.evaluate.cost import CostWatch
from sdtm_fx.evaluate.schedule_costs import Costs, measure_costs, probe_size
from sdtm_fx.recipe.ratio import ConstantRatio, CurveRatio, ListRatio, Ratio, ThresholdRatio, peak
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewrite import rewritten
from sdtm_fx.runtime.schedules import CallSize

Knob: TypeAlias = Literal["ratio", "interval", "threshold"]
"""What is turned: ``ratio`` multiplies every ratio of the recipe by one factor and so keeps the shape of its
curve; ``interval`` is `keep_dense.every_steps`, fractions included, so that dense steps stay spread evenly (the
leading and trailing dense steps of the recipe stay); ``threshold`` is that of SDTM*, found by sampling."""

TOLERANCE = 0.02
"""A match within this relative difference is called close; a knob with few settings may miss it."""

SLACK = 0.10
"""A budget further than this outside of what a knob can reach is an error."""

_SCANNED = 12  # factors that a ratio is tried with before bisection; the cost need not grow evenly with it
_HALVINGS = 12
_CALIBRATIONS = 8  # generations that look for a threshold
_THRESHOLDS = (0.0, 1.0)  # mean cosines; the rest of the scale merges as much as the bounds allow


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
    """Turn ``ratio`` or ``interval`` by the cost model alone; see `match_budget`.

    Args:
        recipe: The recipe that `costs` was measured with, or one that differs in ratios and dense steps.
        costs: From `measure_costs`.
        knob: What to turn.
        speedup: Dense over total MACs that is wanted.

    Raises:
        BudgetError: The budget is out of reach.
    """
    _check_wanted(recipe, speedup)
    if knob == "threshold":
        raise BudgetError(f"{recipe.name}: knob 'threshold' is found by sampling; use match_budget")
    turned = {"ratio": _turn_ratio, "interval": _turn_interval}[knob]
    settings, apply = turned(recipe, costs)
    scanned = [(value, costs.speedup(apply(value))) for value in settings]
    saving = [(value, found) for value, found in scanned if found > 1 + 1e-6]
    if knob == "ratio":
        saving += _halve(scanned, lambda value: costs.speedup(apply(value)), speedup)
    value, found = _closest(recipe, knob, saving, speedup, f"at {costs.size.steps} steps")
    return Match(apply(value), knob, value, speedup, found)


def solve_threshold(recipe: Recipe, measure: Callable[[Recipe], float], *, speedup: float) -> Match:
    """Find the threshold of SDTM* by bisection over measured speedups.

    Args:
        recipe: Has a threshold as its ratio; its bounds stay.
        measure: The speedup of a recipe, from sampling.
        speedup: Dense over total MACs that is wanted.

    Raises:
        BudgetError: The recipe has no threshold, or the budget is out of reach within its bounds.
    """
    _check_wanted(recipe, speedup)
    if not isinstance(recipe.ratio, ThresholdRatio):
        raise BudgetError(
            f"{recipe.name}: knob 'threshold': found a ratio without one; accepted {{threshold: ...}}"
        )

    def apply(value: float) -> Recipe:
        return recipe.override({"ratio.threshold": value})

    low, high = _THRESHOLDS
    tried = [(low, measure(apply(low)))]
    if tried[0][1] > speedup:
        for _ in range(_CALIBRATIONS):
            middle = round((low + high) / 2, 4)
            found = measure(apply(middle))
            tried.append((middle, found))
            if abs(found / speedup - 1) <= TOLERANCE / 2:
                break
            low, high = (middle, high) if found > speedup else (low, middle)
    value, found = _closest(recipe, "threshold", tried, speedup, "within the bounds of the recipe")
    return Match(apply(value), "threshold", value, speedup, found)


def sampled_speedup(
    pipeline: Any,
    prompts: Sequence[str],
    size: CallSize,
    height: int,
    width: int,
    guidance_scale: float | None,
) -> Callable[[Recipe], float]:
    """Return what measures the speedup of a recipe by sampling one image for each prompt, seeds from 0.

    Raises:
        BudgetError: There are no prompts.
    """
    if not prompts:
        raise BudgetError("knob 'threshold' is found by sampling: found no prompts; accepted one or more")
    settings: dict[str, Any] = {} if guidance_scale is None else {"guidance_scale": guidance_scale}

    known: dict[str, float] = {}  # searches for several budgets begin alike

    def measure(recipe: Recipe) -> float:
        key = recipe.fingerprint()
        if key not in known:
            known[key] = sample(recipe)
        return known[key]

    def sample(recipe: Recipe) -> float:
        with rewritten(pipeline, recipe.override(gate="off")), torch.no_grad():
            watch = CostWatch(pipeline)
            with watch.calls() as calls:
                pipeline(
                    prompt=list(prompts), height=height, width=width, num_inference_steps=size.steps,
                    generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
                    output_type="latent", **settings,
                )  # fmt: skip
            return watch.cost(calls, len(prompts)).speedup

    return measure


def _check_wanted(recipe: Recipe, speedup: float) -> None:
    if not speedup > 1:
        raise BudgetError(f"{recipe.name}: found a budget of {speedup:g}x; accepted a speedup above 1")


def _turn_ratio(recipe: Recipe, costs: Costs) -> tuple[list[float], Callable[[float], Recipe]]:
    """Factors up to the largest that every stage can follow, and the recipe for a factor."""
    grid = costs.size.grid
    merging = [stage for stage in recipe.stages if stage.method.merges]
    reach = [
        stage.method.capacity(grid) / (grid[0] * grid[1]) / peak(ratio)
        for stage in merging
        if peak(ratio := stage.ratio or recipe.ratio) > 0
    ]
    if not reach:
        raise BudgetError(
            f"{recipe.name}: knob 'ratio': found no stage that merges; accepted knob 'interval'"
        )
    most = min(*reach, *(0.9999 / peak(stage.ratio or recipe.ratio) for stage in merging))

    def apply(factor: float) -> Recipe:
        own = {
            s.name: {"ratio": _scaled(recipe, s.ratio, factor)} for s in recipe.stages if s.ratio is not None
        }
        return recipe.override({"ratio": _scaled(recipe, recipe.ratio, factor)}, stages=own)

    return [most * (number + 1) / _SCANNED for number in range(_SCANNED)], apply


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


def _distance(steps: int, dense: int) -> float:
    """How far apart so many dense steps lie; rounded up, or one more of them would fit in."""
    return math.ceil(steps / dense * 1e4 - 1e-6) / 1e4


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


def _closest(
    recipe: Recipe, knob: Knob, tried: Sequence[tuple[float, float]], wanted: float, where: str
) -> tuple[float, float]:
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
