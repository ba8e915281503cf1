"""How many tokens every denoising step removes: stages, dense steps and curves of a recipe, quantised."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sdtm_fx.curve import ratio_curve
from sdtm_fx.errors import ScheduleError
from sdtm_fx.grids import TokenGrid, show_grid, tokens_on
from sdtm_fx.levels import Demand, lattice, multiples, quantise, within_reach
from sdtm_fx.recipe.ratio import FullRatio, Ratio, ThresholdRatio
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.sections import Stage

Cost = Callable[["int | None", int], float]
"""Cost of a step: stage index (None: dense) and tokens removed, to multiply-accumulates."""

_ROUNDING = 1e-9  # a step that binary fractions miss by this much is still reached

_QUADRATIC = (
    1 / 3
)  # share of a dense step that is attention proper: 2.89 of 8.90 TMACs, SD3-medium at 1024 px


def relative_cost(tokens: int) -> Cost:
    """Return the cost of a step relative to dense: linear in the kept tokens, one third of it quadratic."""

    def cost(stage: int | None, remove: int) -> float:
        kept = (tokens - remove) / tokens
        return kept * (1 - _QUADRATIC) + kept * kept * _QUADRATIC

    return cost


def stage_of_steps(stages: Sequence[Stage], steps: int) -> tuple[int, ...]:
    """Return the stage index of every step: a stage ends before step ``round(until * steps)``."""
    ends = [round(stage.until * steps) for stage in stages]
    return tuple(next(i for i, end in enumerate(ends) if step < end) for step in range(steps))


def dense_steps(recipe: Recipe, steps: int) -> frozenset[int]:
    """Return the steps that `keep_dense` leaves alone.

    Raises:
        ScheduleError: It names a step that there is not.
    """
    keep = recipe.keep_dense
    beyond = [step for step in keep.steps if step >= steps]
    if beyond:
        raise ScheduleError(
            f"{recipe.name}: keep_dense.steps: found step {beyond[0]}; accepted 0 to {steps - 1}, this generation has "
            f"{steps} steps (a recipe that names steps is for one number of them)"
        )
    every = spread_steps(keep.every_steps, steps) if keep.every_steps is not None else ()
    last = range(max(steps - keep.last_steps, 0), steps)
    return frozenset({*range(min(keep.first_steps, steps)), *last, *every, *keep.steps})


def spread_steps(every: float, steps: int) -> tuple[int, ...]:
    """Return every so many of the steps, the first among them; a fraction is rounded down, step by step.

    Args:
        every: Distance of two such steps, more than 1.
        steps: Number of denoising steps.
    """
    spread = (int(number * every + _ROUNDING) for number in range(steps))
    return tuple(step for step in spread if step < steps)


@dataclass
class StepCounts:
    """Tokens removed per step. Filled by `count_steps`.

    Attributes:
        recipe: The recipe.
        steps: Number of denoising steps.
        grid: Height and width of the image in tokens.
        cost: What a step costs.
        remove: Count of every step that is not dense and not measured; 0 where the lattice made it dense.
        options: Counts to choose from, ascending, of every step that is measured; 0 is dense.
        ratios: Continuous ratio of every step that follows a curve.
        round_to: Kept counts are multiples of this.
        cost_wanted: Cost of all steps that follow a curve, had they followed it exactly.
        cost_excess: What the chosen counts cost more than that.
    """

    recipe: Recipe
    steps: int
    grid: TokenGrid
    cost: Cost
    remove: dict[int, int] = field(default_factory=dict)
    options: dict[int, tuple[int, ...]] = field(default_factory=dict)
    ratios: dict[int, float] = field(default_factory=dict)
    round_to: int = 0
    cost_wanted: float = 0.0
    cost_excess: float = 0.0

    def __post_init__(self) -> None:
        """Work out stages and dense steps."""
        self.tokens = tokens_on(self.grid)
        self.round_to = self.recipe.plan.round_to
        self.stage_of_step = stage_of_steps(self.recipe.stages, self.steps)
        self.dense = dense_steps(self.recipe, self.steps)

    def follow(self, ratio: Ratio, span: list[int], own: list[int]) -> None:
        """Give the steps `own` the counts of a ratio whose curve spans the steps `span`."""
        merged = [step for step in own if step not in self.dense]
        if isinstance(ratio, ThresholdRatio):
            for index in sorted({self.stage_of_step[step] for step in merged}):
                options = self._threshold_levels(ratio, index)
                self.options.update((step, options) for step in merged if self.stage_of_step[step] == index)
            return
        if isinstance(ratio, FullRatio):
            self._follow_fully(merged)
            return
        curve = dict(zip(span, ratio_curve(ratio, len(span)), strict=True))
        merged = [step for step in merged if curve[step] > 0]
        demands = [self._demand(step, curve[step]) for step in merged]
        stages = {self.stage_of_step[step] for step in merged}
        quantum = math.lcm(*(self.recipe.stages[index].method.quantum() for index in stages))
        round_to = self.recipe.plan.round_to
        fit = quantise(demands, tokens=self.tokens, quantum=quantum, round_to=round_to, levels=ratio.levels)
        self.ratios.update((step, curve[step]) for step in merged)
        self.remove.update(zip(merged, fit.counts, strict=True))
        self.round_to = min(self.round_to, fit.multiple)
        actual = sum(demand.cost(count) for demand, count in zip(demands, fit.counts, strict=True))
        self.cost_wanted += actual / (1 + fit.error)
        self.cost_excess += actual - actual / (1 + fit.error)

    def _follow_fully(self, merged: list[int]) -> None:
        """Give steps all that their methods can remove; the multiples of kept counts are what comes out."""
        for step in merged:
            stage = self.stage_of_step[step]
            count = self.recipe.stages[stage].method.capacity(self.grid)
            self.remove[step], self.ratios[step] = count, count / self.tokens
            self.cost_wanted += self.cost(stage if count else None, count)
            fits = (m for m in multiples(self.recipe.plan.round_to) if (self.tokens - count) % m == 0)
            self.round_to = min(self.round_to, next(fits))

    def _demand(self, step: int, ratio: float) -> Demand:
        index = self.stage_of_step[step]
        capacity = self._capacity(index, ratio)

        def cost(count: int) -> float:
            return self.cost(index if count else None, count)

        return Demand(wanted=min(ratio * self.tokens, capacity), capacity=capacity, cost=cost)

    def _capacity(self, index: int, ratio: float) -> int:
        stage = self.recipe.stages[index]
        capacity = stage.method.capacity(self.grid)
        if ratio * self.tokens > capacity + 1e-6:
            raise ScheduleError(
                f"{self.recipe.name}: stage {stage.name!r}: found ratio {ratio:.4g} on a "
                f"{show_grid(self.grid)} grid; {stage.method.name} can remove at most {capacity} of "
                f"{self.tokens} tokens there (ratio {capacity / self.tokens:.4g})"
            )
        return capacity

    def _threshold_levels(self, ratio: ThresholdRatio, index: int) -> tuple[int, ...]:
        """Return counts between the bounds, evenly spaced, and 0 (dense) unless the recipe sets a least."""
        low, high = sorted((ratio.start, ratio.end))
        capacity, quantum = self._capacity(index, high), self.recipe.stages[index].method.quantum()
        most = min(capacity, int(high * self.tokens + 1e-6))
        first = low if low > 0 else high / ratio.levels
        gap = (high - first) / max(ratio.levels - 1, 1)
        ratios = [high] if ratio.levels == 1 else [first + gap * level for level in range(ratio.levels)]
        targets = [value * self.tokens for value in ratios]
        allowed: tuple[int, ...] = ()
        for multiple in multiples(self.recipe.plan.round_to):
            allowed = lattice(self.tokens, most, quantum, multiple)
            self.round_to = min(self.round_to, multiple)
            if all(within_reach(target, allowed, self.tokens) for target in targets):
                break
        counts = (
            {min(allowed, key=lambda count: abs(count - target)) for target in targets} if allowed else set()
        )
        return tuple(sorted(counts if counts and low > 0 else {0, *counts}))


def count_steps(recipe: Recipe, steps: int, grid: TokenGrid, cost: Cost) -> StepCounts:
    """Decide the count of every step, ratio by ratio: those of single stages, then the recipe's.

    Raises:
        ScheduleError: A ratio is out of a method's reach on this grid.
    """
    counts = StepCounts(recipe, steps, grid, cost)
    shared: list[int] = []
    for index, stage in enumerate(recipe.stages):
        span = [step for step in range(steps) if counts.stage_of_step[step] == index]
        if not stage.method.merges:
            counts.remove.update((step, counts.tokens) for step in span if step not in counts.dense)
        elif stage.ratio is None:
            shared += span
        elif span:
            counts.follow(stage.ratio, span, span)
    if shared:
        counts.follow(recipe.ratio, list(range(steps)), shared)
    return counts
