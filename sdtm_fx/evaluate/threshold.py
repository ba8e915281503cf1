"""The knob that only sampling can turn: the threshold of SDTM*, whose merging depends on the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sdtm_fx.evaluate.cost import CostWatch
from sdtm_fx.evaluate.match import TOLERANCE, BudgetError, Match, check_wanted, closest
from sdtm_fx.recipe.ratio import ThresholdRatio
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewrite import rewritten
from sdtm_fx.runtime.schedules import CallSize

_CALIBRATIONS = 8  # generations that look for a threshold
_THRESHOLDS = (0.0, 1.0)  # mean cosines; the rest of the scale merges as much as the bounds allow


def solve_threshold(recipe: Recipe, measure: Callable[[Recipe], float], *, speedup: float) -> Match:
    """Find the threshold of SDTM* by bisection over measured speedups.

    Args:
        recipe: Has a threshold as its ratio; its bounds stay.
        measure: The speedup of a recipe, from sampling.
        speedup: Dense over total MACs that is wanted.

    Raises:
        BudgetError: The recipe has no threshold, or the budget is out of reach within its bounds.
    """
    check_wanted(recipe, speedup)
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
    value, found = closest(recipe, "threshold", tried, speedup, "within the bounds of the recipe")
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
