"""What settings cost, and how a setting is brought to a budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from sdtm_fx.errors import ScheduleError
from sdtm_fx.evaluate.schedule_costs import Costs, measure_costs
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.runtime.schedules import CallSize
from sdtm_fx.tuning.setting import Setting, changes

_HALVINGS = 10
_NEVER = 1e-4  # a fraction below this merges nothing


@dataclass
class Pricing:
    """The cost model, asked once for each kind of setting.

    Attributes:
        bases: The recipes that settings are said in.
        target: A dense pipeline or model.
        size: Steps, grid, batch and text tokens.
        speedup: The budget: dense over total MACs of a generation that is wanted, at least.
        name: What recipes of settings are called.
    """

    bases: tuple[Recipe, ...]
    target: Any
    size: CallSize
    speedup: float
    name: str
    _costs: dict[tuple[object, ...], Costs] = field(default_factory=dict, repr=False)

    def recipe(self, setting: Setting) -> Recipe:
        """The recipe of a setting."""
        base = self.bases[setting.base]
        return base.override({"name": self.name, **changes(setting, base)})

    def price(self, setting: Setting) -> float:
        """Dense over total MACs of a whole generation, by the cost model.

        Raises:
            ScheduleError: A fraction is out of a method's reach on this grid.
        """
        return self._costs_of(setting).speedup(self.recipe(setting))

    def effect(self, setting: Setting) -> tuple[object, ...]:
        """What a generation with a setting does, step by step: settings of equal effect draw equal images.

        Raises:
            ScheduleError: A fraction is out of a method's reach on this grid.
        """
        costs, recipe = self._costs_of(setting), self.recipe(setting)
        schedule = costs.schedule(recipe)
        phases = [schedule.phase(step) for step in range(schedule.steps)]
        mixes = setting.order is not None and setting.merges
        return (
            setting.base,
            setting.order,
            setting.weight if mixes else None,
            tuple(
                (phase, () if phase.stage is None else recipe.stages[phase.stage].sites) for phase in phases
            ),
            frozenset(block.index for block in costs.model.blocks),
        )

    def _costs_of(self, setting: Setting) -> Costs:
        skips = tuple(fraction == 1 for fraction in setting.removed)
        kind = (setting.base, skips, setting.sites, setting.order is None)
        key, every_block = (*kind, setting.whole), (*kind, ())
        if every_block not in self._costs:
            measured = self.recipe(replace(setting, whole=()))
            self._costs[every_block] = measure_costs(measured, self.target, self.size)
        if key not in self._costs:  # rewriting the model again would tell the same
            self._costs[key] = self._costs[every_block].without(setting.whole)
        return self._costs[key]

    def block_groups(self, number: int) -> tuple[tuple[int, ...], ...]:
        """Divide the blocks that have sites, by number, into groups of consecutive ones, as equal as can be.

        Args:
            number: How many groups; fewer where there are fewer blocks.
        """
        costs = next(iter(self._costs.values()))
        blocks = sorted({block.index for block in costs.model.blocks})
        groups = min(number, len(blocks))
        ends = [round(len(blocks) * (group + 1) / groups) for group in range(groups)]
        return tuple(tuple(blocks[start:end]) for start, end in zip([0, *ends], ends, strict=False))

    def meets(self, setting: Setting) -> bool:
        """Whether a setting can be had on this grid, and is as cheap as it has to be."""
        try:
            return self.price(setting) >= self.speedup * (1 - 1e-6)
        except ScheduleError:
            return False

    def reach(self, base: int = 0) -> tuple[float, ...]:
        """The largest fraction that each stage's method can remove on this grid.

        Args:
            base: Number of the recipe.
        """
        tokens = self.size.grid[0] * self.size.grid[1]
        return tuple(stage.method.capacity(self.size.grid) / tokens for stage in self.bases[base].stages)

    def merges(self, base: int) -> bool:
        """Whether the stages of a recipe merge; where they forecast, dense steps are all that is searched.

        Args:
            base: Number of the recipe.
        """
        return all(stage.method.merges for stage in self.bases[base].stages)

    def may_forecast(self, base: int) -> bool:
        """Whether stages may be forecast altogether: not where some blocks get a part of the ratio.

        Args:
            base: Number of the recipe.
        """
        return all(rule.scale in (None, 0, 1) for rule in self.bases[base].layers)

    def fit(self, setting: Setting) -> Setting | None:
        """Bring a setting to the budget: no cheaper than it has to be, None where it cannot be cheap enough.

        Fractions that merge are multiplied by one factor; where nothing merges, it is dear enough or it is not.

        Args:
            setting: A setting.
        """
        if not setting.merges:
            return setting.canonical() if self.meets(setting) else None
        reach = self.reach(setting.base)
        merging = [
            (f * max(1.0, left), most)
            for f, left, most in zip(setting.removed, setting.left, reach, strict=True)
            if f < 1
        ]
        most = min(capacity / fraction for fraction, capacity in merging if fraction > 0)
        low, high = 0.0, most
        if not self.meets(setting.scaled(most)):
            return None
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self.meets(setting.scaled(middle)):
                high = middle
            else:
                low = middle
        found = setting.scaled(high)
        return None if min(found.removed) < _NEVER else found.canonical()

    def fewest(self, setting: Setting, counts: range) -> int | None:
        """The largest number of leading dense steps with which a setting meets the budget; None: not even the least.

        Where dense steps lie makes little difference to what they cost, so a number found for one pattern serves all.

        Args:
            setting: A setting; its dense steps do not matter.
            counts: Numbers to choose from, ascending.
        """
        fitting = [c for c in counts if self.meets(replace(setting, dense=tuple(range(c))))]
        return max(fitting, default=None)
