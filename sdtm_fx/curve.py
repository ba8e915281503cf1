"""Ratio curves: the fraction of the image tokens that is removed at each denoising step."""

from __future__ import annotations

import math
from collections.abc import Callable

from sdtm_fx.errors import ScheduleError
from sdtm_fx.recipe.ratio import ConstantRatio, FullRatio, ListRatio, Ratio, ThresholdRatio


def cosine(start: float, end: float, progress: float) -> float:
    """Quarter wave from `start` to `end`, slow at first: ``end + (start - end) * cos(pi/2 * progress)``.

    With ``progress = t / (T - 1)`` this is the schedule of the released SDTM code.

    Args:
        start: Value at progress 0.
        end: Value at progress 1.
        progress: Position on the curve, 0 to 1.
    """
    return end + (start - end) * math.cos(0.5 * math.pi * progress)


def linear(start: float, end: float, progress: float) -> float:
    """Straight line from `start` (progress 0) to `end` (progress 1)."""
    return start + (end - start) * progress


def interpolated(values: tuple[float, ...], progress: float) -> float:
    """Polygon through `values`, which are spread evenly over progress 0 to 1."""
    position = progress * (len(values) - 1)
    before = min(int(position), len(values) - 1)
    after = min(before + 1, len(values) - 1)
    return linear(values[before], values[after], position - before)


_SHAPES: dict[str, Callable[[float, float, float], float]] = {"cosine": cosine, "linear": linear}


def ratio_curve(ratio: Ratio, steps: int) -> tuple[float, ...]:
    """Return the ratio of every step: fractions removed, before any quantisation.

    Args:
        ratio: A ratio of a recipe. The values of a list are spread evenly over the steps, with straight lines
            between them.
        steps: Number of steps that the curve spans; a single step takes the start of the curve.

    Returns:
        `steps` fractions.

    Raises:
        ScheduleError: `steps` is below 1, or the ratio has no numbers: those of a threshold are measured, and the
            full ratio is what the method can do on a grid.
    """
    if steps < 1:
        raise ScheduleError(f"ratio curve: found {steps} steps; accepted: at least 1")
    if isinstance(ratio, ThresholdRatio):
        raise ScheduleError(
            f"ratio curve: a threshold ({ratio.threshold}) has no curve; its counts are measured"
        )
    if isinstance(ratio, FullRatio):
        raise ScheduleError(
            "ratio curve: the full ratio has no curve; its counts are what the method can remove"
        )
    if isinstance(ratio, ConstantRatio):
        return (ratio.start,) * steps
    progress = [step / max(steps - 1, 1) for step in range(steps)]
    if isinstance(ratio, ListRatio):
        return (
            ratio.values
            if len(ratio.values) == steps
            else tuple(interpolated(ratio.values, p) for p in progress)
        )
    shape = _SHAPES[ratio.curve]
    return tuple(shape(ratio.start, ratio.end, p) for p in progress)
