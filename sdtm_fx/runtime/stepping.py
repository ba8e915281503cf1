"""A step of a branch: which phase it runs, and what is brought up to it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from sdtm_fx.clock import Moment
from sdtm_fx.hashing import combine
from sdtm_fx.phase import Phase, Schedule
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.runtime.state import BranchState


def begin_step(
    recipe: Recipe, moment: Moment, phase: Phase, state: BranchState, device: torch.device
) -> None:
    """Bring what a branch keeps to a step: counts, ages, features, and numbers that graphs read."""
    step = moment.step
    state.measured, state.above = state.above or state.measured, {}
    if phase.stage is None:
        for ages in state.ages.values():
            ages.zero_()  # on a dense step every token is on its own
    state.settle()
    if phase.refresh and state.set_refreshed(step):
        state.shift()
    if recipe.reuse is not None and recipe.reuse.order == 1:
        if recipe.reuse.update == "tokens":
            state.set_now(step, device)
        elif phase.stage is not None:
            state.set_slope(step, device)
    if phase.stage is not None and recipe.stages[phase.stage].method.merges:
        state.held = phase.stage, phase.remove
    # Filled on the device: a copy from the host would make it wait.
    state.set_salt(int(combine(recipe.seed, step)), device)
    if recipe.prompt is not None:
        done = step / max(moment.count - 1, 1)
        weight = recipe.prompt.start + (recipe.prompt.end - recipe.prompt.start) * done
        state.set_prompt_bias(math.log(weight), device)


def choose_phase(
    recipe: Recipe, schedule: Schedule, step: int, state: BranchState, forced: Phase | None
) -> Phase:
    """The phase of the step, or a refresh where this branch lacks the features that it asks for."""
    phase = forced or schedule.phase(step)
    if schedule.choices[step] and forced is None:
        phase = schedule.phase_for_count(step, _measured(state))
    needs_features = phase.stage is not None and recipe.reuse is not None
    if needs_features:
        scheduled = schedule.last_refresh(step)
        if not state.refreshed or (scheduled is not None and state.refreshed[0] < scheduled):
            return Phase(stage=None, remove=0, refresh=True)
    reads_kept = not (phase.fresh_plan and phase.fresh_destinations)
    if reads_kept and state.held != (phase.stage, phase.remove):
        return replace(phase, fresh_plan=True, fresh_destinations=True)
    return phase


def _measured(state: BranchState) -> int | None:
    """The mean over the blocks of what lies above the threshold; waits for the device, once per step."""
    above = state.above or state.measured
    if not above:
        return None
    return int(torch.stack(list(above.values())).double().mean().item())
