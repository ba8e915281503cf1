"""What a recipe costs over a whole generation on the published shape of its model, by the cost model alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sdtm_fx.cost.cost import Cost
from sdtm_fx.cost.counter import Macs
from sdtm_fx.explaining.explain import explain
from sdtm_fx.explaining.shapes import PUBLISHED
from sdtm_fx.phase import Phase, Schedule
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewrite import rewritten
from sdtm_fx.rewriting.rewriting import rewriting_of
from sdtm_fx.runtime.schedules import CallSize


@dataclass(frozen=True)
class Budget(Cost):
    """MACs of one step: the mean over all steps of a generation, planning included.

    Attributes:
        last: Those of the last step, with the recipe.
        decided: Whether the recipe says all of it. Otherwise images decide while they are sampled, and `macs` is
            what the most that may go leaves.
    """

    last: Macs
    decided: bool


def count_budget(
    recipe: Recipe, shape: str, model: nn.Module, steps: int, pixels: int, dense: Macs | None = None
) -> Budget:
    """Count what a generation costs. Nothing is computed but shapes, and the model is left as it was.

    Args:
        recipe: A recipe.
        shape: A name in `PUBLISHED`; it says how many text tokens and guidance halves a call has.
        model: The model of that shape, as `build_shape` makes it.
        steps: Denoising steps.
        pixels: Of each side of the image.
        dense: What is known of the dense model at this size; None counts it.

    Raises:
        SdtmFxError: What `rewrite` raises.
    """
    published = PUBLISHED[shape]
    side = pixels // published.pixels
    size = CallSize(steps, (side, side), published.halves, published.text)
    with rewritten(model, recipe.override(gate="off")):
        if dense is None:
            told = explain(model, steps=steps, grid=size.grid, batch=size.batch, text=size.text, quiet=True)
            dense = told.dense
        rewriting = rewriting_of(model)
        assert rewriting is not None
        cost, schedule = rewriting.schedules.cost, rewriting.schedules.asked(size)
        saved: dict[Phase, Macs] = {}
        total = Macs()
        phases = [_most(schedule, step) for step in range(steps)]
        for phase in phases:
            if phase not in saved:
                saved[phase] = (
                    Macs()
                    if phase.stage is None
                    else cost.saved(
                        phase.stage, size.grid, size.text, phase.remove, size.batch,
                        fresh_plan=phase.fresh_plan, fresh_destinations=phase.fresh_destinations,
                    )
                )  # fmt: skip
            total = total + saved[phase]
    return Budget(
        macs=dense - total * (1 / steps),
        dense=dense,
        last=dense - saved[phases[-1]],
        decided=not any(schedule.choices),
    )


def _most(schedule: Schedule, step: int) -> Phase:
    """The phase of a step; the one that removes most where images decide."""
    choices = schedule.choices[step]
    return schedule.phases[choices[-1]] if choices else schedule.phase(step)
