"""From the entries of a study to rows that can be evaluated: knobs are turned, what cannot be had is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sdtm_fx.evaluate.budget import solve
from sdtm_fx.evaluate.hook import HookedRow, TaylorSeer, match_hook
from sdtm_fx.evaluate.match import TOLERANCE, BudgetError, Knob, Match
from sdtm_fx.evaluate.row import Row
from sdtm_fx.evaluate.schedule_costs import Costs, measure_costs, probe_size
from sdtm_fx.evaluate.study_spec import RowSpec
from sdtm_fx.evaluate.threshold import sampled_speedup, solve_threshold
from sdtm_fx.recipe.ratio import ThresholdRatio
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.runtime.schedules import CallSize


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be had at this number of steps or size."""

    label: str
    reason: str


@dataclass
class RowMaker:
    """Works out row after row of a study, for one pipeline and one way of sampling.

    Attributes:
        recipe: The recipe of a row, before any knob is turned.
        budgets: Those of rows that name none of their own.
        pipeline: The pipeline, dense.
        steps: Denoising steps.
        height: Pixels.
        width: Pixels.
        guidance_scale: Of the pipeline; None takes its default.
        prompts: What thresholds are calibrated with, one image each.
        rows: The rows so far.
        skipped: What was left out so far.
    """

    recipe: Callable[[RowSpec], Recipe]
    budgets: tuple[float, ...]
    pipeline: Any
    steps: int
    height: int
    width: int
    guidance_scale: float | None
    prompts: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    _measure: Callable[[Recipe], float] | None = None
    _sizes: dict[tuple[str, ...], CallSize] = field(default_factory=dict)
    _costs: dict[str, Costs] = field(default_factory=dict)
    _seen: dict[str, str] = field(default_factory=dict)

    def add(self, spec: RowSpec) -> None:
        """Make the rows of one entry, one a budget where it has a knob, or say why there is none."""
        most = spec.steps.most or self.steps
        if not spec.steps.least <= self.steps <= most:
            wanted = (
                f"{spec.steps.least} steps or more" if spec.steps.most is None else f"at most {most} steps"
            )
            reason = f"it is for {wanted}, not {self.steps}"
            self.skipped.append(
                Skipped(spec.label, f"{reason}: {spec.why_steps}" if spec.why_steps else reason)
            )
            return
        recipe = None if spec.recipe is None else self.recipe(spec)
        if spec.knob is None:
            self._keep(spec, spec.label, recipe, spec.hook, None)
            return
        for budget in spec.budgets or self.budgets:
            label = f"{spec.label}, {budget:g}x"
            try:
                self._add_tuned(spec, recipe, budget)
            except BudgetError as error:
                self.skipped.append(Skipped(label, str(error)))

    def _add_tuned(self, spec: RowSpec, recipe: Recipe | None, budget: float) -> None:
        if spec.hook is not None:
            hook, speedup = match_hook(
                spec.hook,
                self.pipeline,
                speedup=budget,
                steps=self.steps,
                height=self.height,
                width=self.width,
            )
            self._keep(spec, _tuned_label(spec, budget, speedup), None, hook, budget)
            return
        assert recipe is not None
        match = self._match(recipe, spec.knob, budget)
        self._keep(spec, _tuned_label(spec, budget, match.speedup), match.recipe, None, budget)

    def _match(self, recipe: Recipe, knob: Knob | None, budget: float) -> Match:
        size = self._size(recipe)
        if knob == "threshold":
            self._measure = self._measure or sampled_speedup(
                self.pipeline, self.prompts, size, self.height, self.width, self.guidance_scale
            )
            return solve_threshold(recipe, self._measure, speedup=budget)
        assert knob is not None
        key = _cost_key(recipe)
        if key not in self._costs:
            self._costs[key] = measure_costs(recipe, self.pipeline, size)
        return solve(recipe, self._costs[key], knob=knob, speedup=budget)

    def _size(self, recipe: Recipe) -> CallSize:
        """The size of the calls, which all recipes of one model share."""
        if recipe.model not in self._sizes:
            self._sizes[recipe.model] = probe_size(
                self.pipeline,
                recipe,
                steps=self.steps,
                height=self.height,
                width=self.width,
                guidance_scale=self.guidance_scale,
            )
        return self._sizes[recipe.model]

    def _keep(
        self, spec: RowSpec, label: str, recipe: Recipe | None, hook: TaylorSeer | None, budget: float | None
    ) -> None:
        drawn = (
            recipe.fingerprint()
            if recipe is not None
            else hook.fingerprint()
            if hook is not None
            else "dense"
        )
        if drawn in self._seen:
            reason = f"at {self.steps} steps it is the same as {self._seen[drawn]!r}"
            wanted = spec.label if budget is None else f"{spec.label}, {budget:g}x"
            self.skipped.append(Skipped(wanted, reason))
            return
        self._seen[drawn] = label
        judged = spec.judged if isinstance(spec.judged, bool) else budget in spec.judged
        row = Row(label, spec.method, recipe, budget, judged)
        self.rows.append(row if hook is None else HookedRow(label, spec.method, None, budget, judged, hook))


def _tuned_label(spec: RowSpec, budget: float, speedup: float) -> str:
    """The budget where it is met, and what is reached where it is not."""
    close = abs(speedup / budget - 1) <= TOLERANCE
    return f"{spec.label}, {budget:g}x" if close else f"{spec.label}, {budget:g}x wanted, {speedup:.2f}x"


def _cost_key(recipe: Recipe) -> str:
    """Equal for recipes that differ in ratios and dense steps only, so that one measurement serves them."""
    neutral: dict[str, Any] = {"name": "same", "description": "", "keep_dense.every_steps": 2}
    threshold = isinstance(recipe.ratio, ThresholdRatio)
    stages = {stage.name: {"ratio": None} for stage in recipe.stages}
    if not threshold:
        neutral["ratio"] = {"curve": "constant", "start": 0.0}
    return recipe.override(neutral, stages=stages).fingerprint()
