"""A schedule without the phases in which the cost gate leaves nothing to merge."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from sdtm_fx.cost.decision import Level
from sdtm_fx.phase import Phase, Schedule


def drop_levels(schedule: Schedule, gone: Set[Level], refresh: bool) -> Schedule:
    """Put dense steps in place of phases.

    Args:
        schedule: What the recipe asks for.
        gone: The levels whose phases run dense from now on.
        refresh: Whether dense steps store features.
    """
    dense = Phase(None, 0, refresh=refresh)
    phases = [dense if (p.stage, p.remove) in gone else p for p in schedule.phases]
    of_step = [phases[index] for index in schedule.phase_of_step]
    choices = [tuple(dict.fromkeys(phases[index] for index in c)) for c in schedule.choices]
    choices = [c if any(p.stage is not None for p in c) else () for c in choices]
    used = {*of_step, *(p for c in choices for p in c)}
    left = tuple(dict.fromkeys(p for p in (dense, *phases) if p in used))
    number = {phase: index for index, phase in enumerate(left)}
    return replace(
        schedule,
        phases=left,
        phase_of_step=tuple(number[p] for p in of_step),
        ratios=tuple(
            ratio if phase.stage is not None or options else 0.0
            for phase, options, ratio in zip(of_step, choices, schedule.ratios, strict=True)
        ),
        choices=tuple(tuple(number[p] for p in c) for c in choices),
    )
