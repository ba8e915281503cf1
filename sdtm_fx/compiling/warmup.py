"""Warming up: every phase of a size is run once, so that it is compiled before the first image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from rich.progress import Progress

from sdtm_fx.capture.example import ExampleSize, example_call
from sdtm_fx.clock_sources import ManualSteps
from sdtm_fx.compiling.phases import PhaseKey
from sdtm_fx.grids import TokenGrid
from sdtm_fx.phase import Phase, Schedule
from sdtm_fx.rewriting.rewriting import Rewriting
from sdtm_fx.runtime.call import Variant


@dataclass(frozen=True)
class Size:
    """The size of a generation.

    Attributes:
        grid: (height, width) in image tokens; a 1024 px image of SD3 or FLUX has 64 x 64. With frames (frames, height,
            width), protected ones counted.
        batch: Samples per call, CFG halves counted.
        text: Text tokens.
        steps: Denoising steps.
        cfg_halves: How many guidance halves are stacked in the batch; None: two where the recipe shares plans
            over them, or compares them, and the batch is even.
        references: Tokens of reference images.
    """

    grid: TokenGrid
    batch: int = 2
    text: int = 77
    steps: int = 28
    cfg_halves: int | None = None
    references: int = 0

    def halves(self, shared: bool) -> int:
        """CFG halves in the batch, for a recipe that shares plans over them or not."""
        return self.cfg_halves or (2 if shared and self.batch % 2 == 0 else 1)


def distinct_phases(rewriting: Rewriting, schedule: Schedule) -> Iterator[tuple[int, Phase]]:
    """Yield the first step of every phase of a schedule that is a graph of its own, in the order of the steps.

    A count that is measured (SDTM*) may choose among several phases in one step; all are yielded.
    """
    seen: set[tuple[Variant | None, int, bool, bool]] = set()
    for step in range(schedule.steps):
        chosen = [schedule.phases[i] for i in schedule.choices[step]]
        for phase in [schedule.phase(step), *chosen]:
            identity = step_identity(rewriting, schedule, step, phase)
            if identity not in seen:
                seen.add(identity)
                yield step, phase


def step_identity(
    rewriting: Rewriting, schedule: Schedule, step: int, phase: Phase
) -> tuple[Variant | None, int, bool, bool]:
    """What makes a step that runs a phase a graph of its own."""
    variant = rewriting.runtime.variant(schedule, step, phase)
    return variant, phase.remove, phase.fresh_plan, phase.fresh_destinations


def warm_up(model: torch.nn.Module, rewriting: Rewriting, size: Size) -> tuple[PhaseKey, ...]:
    """Run every phase of a size once on noise.

    Args:
        model: The compiled model.
        rewriting: Its rewriting.
        size: The size.

    Returns:
        The phases that ran, in order.

    Raises:
        RewriteError: The recipe has no `inputs` to make a call from.
        ScheduleError: The recipe cannot be scheduled for this size.
    """
    runtime, recipe = rewriting.runtime, rewriting.recipe
    grid = recipe.tokens.mergeable(size.grid)
    arguments = example_call(model, recipe, ExampleSize(size.batch, size.text, grid, size.references))
    schedule = runtime.schedule(size.steps, grid, size.text, size.batch, size.references)
    phases = list(distinct_phases(rewriting, schedule))
    ran: list[PhaseKey] = []
    halves = size.halves(recipe.reads_halves)
    handle = model.register_forward_pre_hook(lambda *_: _note(rewriting, ran))
    try:
        with (
            torch.no_grad(),
            runtime.rehearsal(size.steps, halves) as clock,
            Progress(transient=True) as progress,
        ):
            for step, phase in progress.track(phases, description="compiling phases"):
                run_phase(rewriting, clock, schedule, step, phase, lambda: model(**arguments))
    finally:
        handle.remove()
    return tuple(ran)


def run_phase(
    rewriting: Rewriting,
    clock: ManualSteps,
    schedule: Schedule,
    step: int,
    phase: Phase,
    run: Callable[[], object],
) -> None:
    """In a rehearsal, run a phase at a step, and before it the refresh that it forecasts from.

    The phase stays forced afterwards, so that more calls run it again.
    """
    refresh = schedule.last_refresh(step)
    if refresh is not None and clock.step < refresh < step:
        rewriting.runtime.forced = None
        clock.step = refresh
        run()
    clock.step, rewriting.runtime.forced = step, phase
    run()


def _note(rewriting: Rewriting, ran: list[PhaseKey]) -> None:
    assert rewriting.runtime.call is not None
    ran.append(PhaseKey.of(rewriting.runtime.call))
