"""Refreshes that a change of stage asks for: a stage reads what the last dense step did not store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sdtm_fx.phase import Phase, Schedule

Suffices = Callable[[int, int], bool]
"""Whether the features that are stored for one stage are all that another stage reads."""


def add_refreshes(schedule: Schedule, suffices: Suffices) -> Schedule:
    """Make a step dense where its stage reads features that the refresh before it stored for another stage.

    Args:
        schedule: A schedule of a recipe with `reuse`.
        suffices: Called with the stage that a refresh served, and the stage of the step.
    """
    dense = next((i for i, phase in enumerate(schedule.phases) if phase.refresh), None)
    if dense is None:
        return schedule
    numbers, choices = list(schedule.phase_of_step), list(schedule.choices)
    served: int | None = None
    for step in range(schedule.steps):
        stage = _stage_at(schedule, step)
        if stage is None:
            served = next_stage(schedule, step)
        elif served is None or (served != stage and not suffices(served, stage)):
            numbers[step], choices[step], served = dense, (), stage
    return replace(schedule, phase_of_step=tuple(numbers), choices=tuple(choices))


def next_stage(schedule: Schedule, step: int) -> int | None:
    """The stage of the next step that is not dense: what a dense step stores features for."""
    stages = (_stage_at(schedule, later) for later in range(step, schedule.steps))
    return next((stage for stage in stages if stage is not None), None)


def _stage_at(schedule: Schedule, step: int) -> int | None:
    """The stage that a step may run, None where it is dense for sure."""
    phase: Phase = schedule.phase(step)
    if phase.stage is None and schedule.choices[step]:
        phase = schedule.phases[schedule.choices[step][-1]]
    return phase.stage
