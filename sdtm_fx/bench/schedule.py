"""Timing a whole schedule: every phase against the dense model, weighed by the steps that run it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sdtm_fx.bench.configs import BenchModel
from sdtm_fx.bench.pairing import BenchSetup, Pairing, pair_of_models
from sdtm_fx.bench.timing import seconds
from sdtm_fx.compiling.phases import PhaseKey
from sdtm_fx.compiling.warmup import distinct_phases, run_phase, step_identity
from sdtm_fx.explaining.explain import explain
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.rewriting import Rewriting


@dataclass(frozen=True)
class PhaseTiming:
    """One phase against dense.

    Attributes:
        label: Name of the phase.
        steps: How many steps of the schedule run it.
        removed: Tokens removed at merged sites.
        theoretical: Dense MACs over those of the phase, attention counted.
        ratios: Dense time over that of the phase, one per pair of runs.
        dense_seconds: Median time of a dense call.
        seconds: Median time of a call in the phase.
        first_seconds: Time of the first call, compilation included.
    """

    label: str
    steps: int
    removed: int
    theoretical: float
    ratios: tuple[float, ...]
    dense_seconds: float
    seconds: float
    first_seconds: float

    @property
    def measured(self) -> float:
        """Median of the paired ratios."""
        return statistics.median(self.ratios)

    @property
    def efficiency(self) -> float:
        """Measured speedup over theoretical speedup."""
        return self.measured / self.theoretical


@dataclass(frozen=True)
class ScheduleTiming:
    """A whole generation against dense.

    Attributes:
        steps: Denoising steps.
        phases: The phases of the schedule.
        theoretical: Dense MACs of all steps over the merged ones.
        measured: The same of the times: each phase counts with its measured speedup.
    """

    steps: int
    phases: tuple[PhaseTiming, ...]
    theoretical: float
    measured: float

    @property
    def efficiency(self) -> float:
        """Measured speedup over theoretical speedup."""
        return self.measured / self.theoretical


def bench_schedule(
    model: BenchModel,
    recipe: Recipe,
    setup: BenchSetup,
    steps: int,
    on_run: Callable[[], None] = lambda: None,
) -> ScheduleTiming:
    """Time every phase of a recipe as it is, each call paired with a dense one.

    Args:
        model: What to build, with random weights.
        recipe: The recipe.
        setup: Sizes and numbers.
        steps: Denoising steps of the schedule.
        on_run: Called after each pair, for progress bars.

    Raises:
        ScheduleError: The recipe cannot be scheduled at this size.
    """
    pairing = pair_of_models(model, recipe.override({"sites.*.expect": None}), setup)
    rewriting, size = pairing.rewriting, pairing.size
    report = explain(
        pairing.merged, steps=steps, grid=size.grid, batch=size.batch, text=size.text, quiet=True
    )
    schedule = rewriting.runtime.schedule(steps, size.grid, size.text, size.batch)
    counts = Counter(step_identity(rewriting, schedule, t, schedule.phase(t)) for t in range(steps))
    timings: list[PhaseTiming] = []
    labels: list[str] = []
    firsts: list[float] = []

    def run() -> None:
        firsts.append(seconds(lambda: labels.append(_run_labelled(rewriting, pairing)), setup.device))

    with torch.no_grad(), rewriting.runtime.rehearsal(steps, model.halves) as clock:
        for step, phase in distinct_phases(rewriting, schedule):
            run_phase(rewriting, clock, schedule, step, phase, run)
            first = firsts[-1]
            pairs = [pairing.time_pair() for _ in range(setup.runs + 1)][1:]
            on_run()
            macs = report.phases[schedule.phases.index(phase)].macs
            timings.append(
                PhaseTiming(
                    label=labels[-1],
                    steps=counts[step_identity(rewriting, schedule, step, phase)],
                    removed=phase.remove,
                    theoretical=report.dense.total / macs.total,
                    ratios=tuple(dense / merged for dense, merged in pairs),
                    dense_seconds=statistics.median(dense for dense, _ in pairs),
                    seconds=statistics.median(merged for _, merged in pairs),
                    first_seconds=first,
                )
            )
    return ScheduleTiming(
        steps=steps,
        phases=tuple(timings),
        theoretical=steps / sum(t.steps / t.theoretical for t in timings),
        measured=steps / sum(t.steps / t.measured for t in timings),
    )


def _run_labelled(rewriting: Rewriting, pairing: Pairing) -> str:
    """Run the phase once; returns its label."""
    seen: list[Any] = []
    handle = pairing.merged.register_forward_pre_hook(lambda *_: seen.append(rewriting.runtime.call))
    try:
        pairing.merged(**pairing.arguments)
    finally:
        handle.remove()
    return PhaseKey.of(seen[0]).label(rewriting.recipe)
