"""The schedules of a rewritten model: which phase every step of a generation runs, at any size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from sdtm_fx.cost.decision import GateDecision, GateSize
from sdtm_fx.cost.gating import decide
from sdtm_fx.cost.model import CostModel
from sdtm_fx.cost.profile import DeviceKey, DeviceProfile
from sdtm_fx.grids import TokenGrid
from sdtm_fx.phase import Schedule
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.runtime.inside import inside_of
from sdtm_fx.runtime.refreshes import Suffices, add_refreshes
from sdtm_fx.schedule import build_schedule


@dataclass(frozen=True)
class CallSize:
    """The size of a model call.

    Attributes:
        steps: Denoising steps of the generation.
        grid: (height, width) of the tokens that may be merged, behind their frames where there are some.
        batch: Samples, CFG halves counted.
        text: Text tokens.
        references: Tokens of reference images.
    """

    steps: int
    grid: TokenGrid
    batch: int
    text: int
    references: int = 0


@dataclass
class Schedules:
    """Makes every schedule once.

    Attributes:
        recipe: The recipe.
        cost: What steps cost; a schedule weighs its levels by it.
        refreshes: Whether the features stored for one stage are all that another reads.
        profiles: What devices can do, for the cost gate; empty where it is off or nothing was measured.
    """

    recipe: Recipe
    cost: CostModel
    refreshes: Suffices
    profiles: Mapping[DeviceKey, DeviceProfile]
    _asked: dict[tuple[int, TokenGrid, int, int], Schedule] = field(default_factory=dict, repr=False)
    _decided: dict[tuple[CallSize, DeviceKey], GateDecision] = field(default_factory=dict, repr=False)

    def asked(self, size: CallSize) -> Schedule:
        """The schedule that the recipe asks for, whatever the cost gate says.

        Raises:
            ScheduleError: The recipe cannot be scheduled for this number of steps and this grid.
        """
        key = (size.steps, size.grid, size.text, size.references)
        if key not in self._asked:
            cost = self.cost.step_cost(size.grid, size.text, size.references)
            schedule = build_schedule(self.recipe, steps=size.steps, grid=size.grid, cost=cost)
            self._check_inside(schedule)
            if self.recipe.reuse is not None:
                schedule = add_refreshes(schedule, self.refreshes)
            self._asked[key] = schedule
        return self._asked[key]

    def _check_inside(self, schedule: Schedule) -> None:
        """Raise where a span of some phase keeps fewer slots than what merges inside of it asks for."""
        for phase in schedule.phases:
            if phase.stage is not None:
                stage = self.recipe.stages[phase.stage]
                inside_of(stage, schedule.tokens - phase.remove, self.recipe.plan.round_to)

    def gate(self, size: CallSize, device: torch.device | None, compiled: bool) -> GateDecision | None:
        """What the cost gate decides; None where it is off or has nothing to go by.

        Args:
            size: The size of the calls.
            device: As for `device_key`.
            compiled: As for `device_key`.
        """
        if not self.profiles:
            return None
        key = self.device_key(device, compiled)
        profile = self.profiles.get(key)
        if profile is None:
            return None
        if (size, key) not in self._decided:
            gated = GateSize(size.grid, size.text, size.batch, getattr(torch, key.dtype), size.references)
            self._decided[size, key] = decide(self.cost, self.asked(size), gated, profile, self.refreshes)
        return self._decided[size, key]

    def device_key(self, device: torch.device | None, compiled: bool) -> DeviceKey:
        """What the model runs on.

        Args:
            device: Of its last call; None before the first, when its weights tell.
            compiled: Whether compiled code runs it.
        """
        floating = (p for b in self.cost.blocks for p in b.block.parameters() if p.is_floating_point())
        weights = next(floating, None)
        dtype = torch.get_default_dtype() if weights is None else weights.dtype
        device = device or (torch.device("cpu") if weights is None else weights.device)
        if device.type == "meta":  # shapes without weights are asked about, as for the machine at hand
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return DeviceKey.of(device, dtype, compiled)
