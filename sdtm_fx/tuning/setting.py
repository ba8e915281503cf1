"""A point on the scale from dense through merging to forecast, and the recipe that says it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sdtm_fx.curve import ratio_curve
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.recipe.ratio import FullRatio, ThresholdRatio
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.siblings import sibling
from sdtm_fx.step_counts import dense_steps

_LEVELS = 3  # of a falling ratio, in one stage: each is a compiled phase


@dataclass(frozen=True)
class Setting:
    """How much of the model is computed where, for one number of denoising steps.

    Attributes:
        dense: Steps that are computed whole, ascending.
        ends: For each stage of the recipe, the first step after it; the last is the number of steps.
        removed: For each stage, the fraction of image tokens that is removed between dense steps, in the first step of
            the stage; 1 forecasts the sites altogether.
        left: For each stage, what is left of that fraction in its last step, as a part of it: 1 keeps it, 0 lets it
            fall to nothing, more than 1 lets it rise, on a straight line.
        order: Of the forecast that merged positions get; None: copies of their slot, nothing is stored.
        weight: Share of the newly computed value at merged positions, where there is a forecast.
        sites: For each stage, the sites that are merged or forecast.
        whole: Blocks, by number, that are computed whole in every step.
        plan_steps: Consecutive steps that share a plan.
        base: Which of the searched recipes it is said in, by number.
    """

    dense: tuple[int, ...]
    ends: tuple[int, ...]
    removed: tuple[float, ...]
    left: tuple[float, ...]
    order: int | None
    weight: float
    sites: tuple[tuple[str, ...], ...]
    whole: tuple[int, ...] = ()
    plan_steps: int = 1
    base: int = 0

    @property
    def steps(self) -> int:
        """Number of denoising steps."""
        return self.ends[-1]

    @property
    def ranges(self) -> tuple[range, ...]:
        """The steps of each stage."""
        return tuple(range(start, end) for start, end in zip((0, *self.ends), self.ends, strict=False))

    @property
    def least_dense(self) -> int:
        """How many dense steps its forecasts take."""
        return 0 if self.order is None else self.order + 1

    @property
    def merges(self) -> bool:
        """Whether some stage runs on fewer tokens."""
        return any(fraction < 1 for fraction in self.removed)

    @property
    def caches(self) -> bool:
        """Whether every stage is forecast altogether, as a step cache does it."""
        return not self.merges

    @property
    def tells_stages_apart(self) -> bool:
        """Whether it matters which stage a step is of."""
        return not self.caches or len(set(self.sites)) > 1

    def scaled(self, factor: float) -> Setting:
        """The same with every fraction that merges multiplied by a factor."""
        return replace(self, removed=tuple(f if f == 1 else _round_down(f * factor) for f in self.removed))

    def canonical(self) -> Setting:
        """The same with all that changes nothing set to one value, so that equal points are equal."""
        kept = zip(self.removed, self.left, self.ranges, strict=True)
        changes: dict[str, Any] = {
            "left": tuple(1.0 if f == 1 or len(steps) == 1 else left for f, left, steps in kept)
        }
        if self.caches:
            changes |= {"weight": 0.0, "plan_steps": 1}
            if not self.tells_stages_apart:
                last = self.steps - len(self.ends) + 1
                changes["ends"] = tuple(range(last, self.steps + 1))
        elif self.order is None:
            changes["weight"] = 0.0
        return replace(self, **changes)


def setting_of(recipe: Recipe, steps: int, *, removed: float, base: int = 0) -> Setting:
    """The setting that a recipe's own stages make, with one fraction for all of them and no dense steps.

    Args:
        recipe: The recipe that settings are said in. Every stage merges, on sites and not in spans; or every stage
            forecasts, and goes on doing so.
        steps: Denoising steps; at least one for each stage.
        removed: The fraction, where stages merge.
        base: The number of the recipe among those that are searched.

    Raises:
        SdtmFxError: Some stages merge and some do not, or one merges in a span, or there are too few steps.
    """
    merging = [stage for stage in recipe.stages if stage.method.merges]
    forecasts = next((stage for stage in recipe.stages if not stage.method.merges), None)
    if merging and forecasts is not None:
        other = sibling(recipe.name, "merge")
        such = f", such as {other}" if other else ""
        raise SdtmFxError(
            f"tune: {recipe.name}: found method {forecasts.method.name} in stage {forecasts.name!r} beside stages that "
            f"merge; accepted a recipe whose stages all merge{such} (forecasting some of them altogether is part of "
            "what is tried), or all forecast"
        )
    for stage in merging:
        spans = [site for site in stage.sites if site in {span.id for span in recipe.spans}]
        if spans:
            raise SdtmFxError(
                f"tune: {recipe.name}: found the span {spans[0]!r} in stage {stage.name!r}; accepted sites only, where "
                "a stage merges"
            )
    count = len(recipe.stages)
    if steps < count:
        raise SdtmFxError(f"tune: found {steps} steps; accepted {count} or more, one for each stage")
    ends = [max(round(stage.until * steps), number + 1) for number, stage in enumerate(recipe.stages)]
    ends = [min(end, steps - (count - 1 - number)) for number, end in enumerate(ends)]
    weight = 0.1 if recipe.reuse is None else recipe.reuse.weight
    return Setting(
        dense=(),
        ends=tuple(ends),
        removed=(removed if merging else 1.0,) * count,
        left=(1.0,) * count,
        order=None,
        weight=weight,
        sites=tuple(stage.sites for stage in recipe.stages),
        base=base,
    )


def as_written(recipe: Recipe, steps: int, base: int = 0) -> Setting | None:
    """The setting that comes closest to a recipe as it is, its own ratios and dense steps included.

    Args:
        recipe: As `setting_of` takes it.
        steps: Denoising steps.
        base: The number of the recipe among those that are searched.

    Returns:
        The setting, whose ratios are straight lines between the first and the last step of each stage; None where a
        ratio has no numbers (a threshold, or all that a method can remove), or a stage begins with a ratio of 0.

    Raises:
        SdtmFxError: What `setting_of` raises.
    """
    plain = setting_of(recipe, steps, removed=1.0, base=base)
    removed: list[float] = []
    left: list[float] = []
    for stage, own in zip(recipe.stages, plain.ranges, strict=True):
        ratio = recipe.ratio if stage.ratio is None else stage.ratio
        if not stage.method.merges:
            curve: tuple[float, ...] = (1.0,)
        elif isinstance(ratio, ThresholdRatio | FullRatio):
            return None
        elif stage.ratio is None:
            curve = ratio_curve(ratio, steps)[own.start : own.stop]
        else:
            curve = ratio_curve(ratio, len(own))
        if not curve[0]:
            return None
        removed.append(curve[0])
        left.append(curve[-1] / curve[0])
    return replace(
        plain,
        dense=tuple(sorted(dense_steps(recipe, steps))),
        removed=tuple(removed),
        left=tuple(left),
        order=None if recipe.reuse is None else recipe.reuse.order,
        plan_steps=recipe.plan.every_steps,
    )


def changes(setting: Setting, recipe: Recipe) -> dict[str, Any]:
    """What a setting changes in the recipe that it is said in, as plain data under its sections.

    Args:
        setting: The setting.
        recipe: As `setting_of` took it.
    """
    stages: dict[str, dict[str, Any]] = {}
    for number, stage in enumerate(recipe.stages):
        fraction = setting.removed[number]
        own: dict[str, Any] = {}
        if setting.tells_stages_apart:
            own["until"] = setting.ends[number] / setting.steps
        if setting.sites[number] != stage.sites:
            own["sites"] = list(setting.sites[number])
        if fraction == 1:
            own |= {"method": {"name": "skip"}, "ratio": None}
        else:
            own["ratio"] = _ratio(fraction, setting.left[number])
        stages[stage.name] = own
    said: dict[str, Any] = {
        "stages": stages,
        "keep_dense": {
            "first_steps": 0,
            "last_steps": 0,
            "every_steps": None,
            "steps": list(setting.dense),
        },
        "reuse": None if setting.order is None else {"order": setting.order, "weight": setting.weight},
    }
    if setting.whole:
        said["keep_dense"]["layers"] = [*recipe.keep_dense.layers, *setting.whole]
    if setting.plan_steps != recipe.plan.every_steps:
        said["plan"] = {"every_steps": setting.plan_steps}
    return said


def _ratio(start: float, left: float) -> dict[str, Any]:
    if left == 1:
        return {"curve": "constant", "start": start}
    return {"curve": "linear", "start": start, "end": _round_down(start * left), "levels": _LEVELS}


def _round_down(fraction: float) -> float:
    return int(fraction * 1e4) / 1e4
