"""The schedule: which phase, out of a few static ones, every denoising step runs."""

from __future__ import annotations

import logging
from dataclasses import replace

from sdtm_fx.errors import ScheduleError
from sdtm_fx.grids import TokenGrid, show_grid, tokens_on
from sdtm_fx.phase import Phase, Schedule
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.sections import PlanSharing
from sdtm_fx.step_counts import Cost, StepCounts, count_steps, relative_cost

__all__ = ["Cost", "Phase", "Schedule", "build_schedule"]

logger = logging.getLogger(__name__)


def build_schedule(recipe: Recipe, *, steps: int, grid: TokenGrid, cost: Cost | None = None) -> Schedule:
    """Decide the phase of every step.

    A curve of the recipe spans all steps; the curve of a stage spans the steps of that stage.

    Args:
        recipe: A checked recipe.
        steps: Number of denoising steps, at least 1.
        grid: Height and width of the image in tokens.
        cost: What a step costs, so that the quantised steps cost what the curve would; by default
            proportional to the kept tokens, one third of it to their square.

    Raises:
        ScheduleError: A ratio is out of a method's reach on this grid, features are to be reused before any
            were stored, or `steps` or `grid` is not positive.
    """
    if steps < 1 or min(grid) < 1:
        raise ScheduleError(
            f"schedule: found {steps} steps on a {show_grid(grid)} grid; accepted: at least 1 each"
        )
    counts = count_steps(recipe, steps, grid, cost or relative_cost(tokens_on(grid)))
    schedule = _number_phases(counts)
    _check_reuse(recipe, schedule)
    logger.info(
        "%s: %d steps, %d tokens, %d phases, kept counts are multiples of %d, cost error %+.2f %%",
        recipe.name,
        steps,
        schedule.tokens,
        len(schedule.phases),
        schedule.round_to_used,
        100 * schedule.cost_error,
    )
    return schedule


def _number_phases(counts: StepCounts) -> Schedule:
    dense = Phase(stage=None, remove=0, refresh=counts.recipe.reuse is not None)

    def phase(step: int, remove: int) -> Phase:
        return Phase(stage=counts.stage_of_step[step], remove=remove, refresh=False) if remove else dense

    steps = range(counts.steps)
    fixed = [phase(step, counts.remove.get(step, 0)) for step in steps]
    chosen = [[phase(step, count) for count in counts.options.get(step, ())] for step in steps]
    fixed = _keep_plans(fixed, counts.recipe.plan, counts.tokens)
    distinct = {*fixed, *(option for options in chosen for option in options)}
    phases = sorted(
        distinct,
        key=lambda p: (
            p.stage is not None,
            p.stage or 0,
            -p.remove,
            not p.fresh_plan,
            not p.fresh_destinations,
        ),
    )
    number = {phase: index for index, phase in enumerate(phases)}
    return Schedule(
        steps=counts.steps,
        tokens=counts.tokens,
        phases=tuple(phases),
        phase_of_step=tuple(number[phase] for phase in fixed),
        ratios=tuple(counts.ratios.get(step, 0.0) for step in steps),
        choices=tuple(tuple(number[option] for option in options) for options in chosen),
        round_to_used=counts.round_to,
        cost_error=counts.cost_excess / counts.cost_wanted if counts.cost_wanted else 0.0,
    )


def _keep_plans(phases: list[Phase], plan: PlanSharing, tokens: int) -> list[Phase]:
    """In each run of steps with one stage and count, keep the plan on all but every `every_steps`-th step.

    Destinations are kept on all but every `destinations_every`-th, a step that makes a plan. Dense and skipping
    steps have no plan; theirs stays marked fresh, so that they are one phase.
    """
    kept, run = [], 0
    for step, phase in enumerate(phases):
        run = run + 1 if step and phase == phases[step - 1] else 0
        planless = phase.stage is None or phase.remove == tokens
        fresh = planless or run % plan.every_steps == 0
        # Where the plan is kept whole, that says all: one phase.
        chosen = planless or not fresh or run % (plan.destinations_every or plan.every_steps) == 0
        kept.append(replace(phase, fresh_plan=fresh, fresh_destinations=chosen))
    return kept


def _check_reuse(recipe: Recipe, schedule: Schedule) -> None:
    for step in range(schedule.steps):
        phase = schedule.phase(step)
        forecasts = phase.stage is not None and (recipe.reuse is not None or phase.remove == schedule.tokens)
        if phase.stage is not None and forecasts and schedule.last_refresh(step) is None:
            raise ScheduleError(
                f"{recipe.name}: stage {recipe.stages[phase.stage].name!r} reuses features at step {step} of "
                f"{schedule.steps}, but no step before it stores any; with `reuse`, every dense step does "
                "(keep_dense.first_steps: 1)"
            )
