"""Idle stages: what a recipe asks for and a generation never runs, in words, so that no no-op is silent."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from sdtm_fx.phase import Schedule
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.sections import Stage
from sdtm_fx.recipe.siblings import sibling
from sdtm_fx.step_counts import dense_steps, stage_of_steps

logger = logging.getLogger(__name__)


@dataclass
class NoOps:
    """Warns of what generations never do, once each.

    Attributes:
        told: What was said.
    """

    told: set[str] = field(default_factory=set)

    def warn(self, recipe: Recipe, asked: Schedule, decided: Schedule | None) -> None:
        """Log as a warning what a generation never does.

        Args:
            recipe: The recipe.
            asked: The schedule that it asks for.
            decided: What the cost gate has left of it; None where there is no gate.
        """
        gated = None if decided is None else gated_away(recipe, asked, decided)
        for said in (*idle_stages(recipe, asked), *([gated] if gated else ())):
            if said not in self.told:
                self.told.add(said)
                logger.warning("%s", said)


@contextlib.contextmanager
def untold() -> Iterator[None]:
    """Where recipes are points of a search that nobody wrote, what they never do is no news."""
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def idle_stages(recipe: Recipe, schedule: Schedule) -> tuple[str, ...]:
    """Say which stages of a recipe run in no step of a schedule, and why: one sentence each.

    Not among them: a stage whose ratio is 0 by the recipe, which is dense on purpose, and one that does what another
    does that runs.

    Args:
        recipe: The recipe.
        schedule: What it asks for, without the cost gate.
    """
    said: list[str] = []
    running = [_work(recipe.stages[index]) for index in _running(schedule)]
    for index, stage in enumerate(recipe.stages):
        why = None if _work(stage) in running else _why_idle(recipe, schedule, index)
        if why is not None:
            said.append(
                f"{recipe.name}: stage {stage.name!r} runs in none of the {schedule.steps} steps: {why}{_other(recipe)}"
            )
    return tuple(said)


def gated_away(recipe: Recipe, asked: Schedule, decided: Schedule) -> str | None:
    """Say so where the cost gate leaves nothing to merge in any step; None where it leaves something.

    Args:
        recipe: The recipe.
        asked: The schedule that it asks for.
        decided: What the cost gate has left of it.
    """
    if not _running(asked) or _running(decided):
        return None
    return (
        f"{recipe.name}: every one of the {asked.steps} steps is dense: the cost gate found that merging costs more "
        "than it saves everywhere (`explain` says where; `gate: off` in the recipe merges all the same)"
    )


def _running(schedule: Schedule) -> frozenset[int]:
    """The stages that some step runs, or may run."""
    numbers = {*schedule.phase_of_step, *(n for options in schedule.choices for n in options)}
    stages = (schedule.phases[number].stage for number in numbers)
    return frozenset(stage for stage in stages if stage is not None)


def _work(stage: Stage) -> Stage:
    """A stage without what tells it from one that does the same in other steps."""
    return stage.model_copy(update={"name": "", "until": 1.0})


def _why_idle(recipe: Recipe, schedule: Schedule, index: int) -> str | None:
    """Why no step runs a stage; None where its ratio is 0 in all that could."""
    stage_of_step = stage_of_steps(recipe.stages, schedule.steps)
    own = [step for step in range(schedule.steps) if stage_of_step[step] == index]
    if not own:
        begins = recipe.stages[index - 1].until if index else 0
        return f"no step falls between {begins:g} and {recipe.stages[index].until:g} of them"
    dense = dense_steps(recipe, schedule.steps)
    if dense.issuperset(own):
        return f"keep_dense keeps all of its own, {ranges(own)}"
    most = max(schedule.ratios[step] for step in own)
    rounded = f"a ratio of at most {most:.4g} removes no token of {schedule.tokens}"
    stores = f"all of its own, {ranges(own)}, store the features that it reads"
    if not recipe.stages[index].method.merges:
        return stores
    if most == 0:
        return None
    return f"{rounded}, or {stores}" if recipe.reuse is not None else rounded


def _other(recipe: Recipe) -> str:
    few = sibling(recipe.name, "few")
    return f" (for few steps there is {few})" if few else ""


def ranges(steps: Iterable[int]) -> str:
    """Ascending steps in short: ``0-2, 5`` for 0, 1, 2 and 5."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and runs[-1][1] == step - 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
