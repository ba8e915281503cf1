"""Timing the stages of a recipe against the dense model, in pairs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from sdtm_fx.bench.breakdown import breakdown
from sdtm_fx.bench.configs import BenchModel
from sdtm_fx.bench.pairing import BenchSetup, pair_of_models
from sdtm_fx.explaining.explain import explain
from sdtm_fx.explaining.report import Explanation, PhaseReport
from sdtm_fx.grids import tokens_on
from sdtm_fx.phase import Phase
from sdtm_fx.recipe.ratio import FullRatio
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewrite import steps
from sdtm_fx.rewriting.rewriting import Rewriting
from sdtm_fx.runtime.call import Variant


@dataclass(frozen=True)
class StageTiming:
    """One stage against dense.

    Attributes:
        stage: Name of the stage.
        tokens: Image tokens before.
        kept: Image tokens at merged sites.
        theoretical: Dense MACs over merged MACs, attention counted.
        ratios: Dense time over merged time, one per pair of runs.
        dense_seconds: Median time of a dense call.
        merged_seconds: Median time of a merged call.
        plans: How many plans a merged call makes.
        dense_bytes: Peak memory of a dense call, before the merged model has run; None where nothing counts it.
        merged_bytes: Peak memory of a merged call, what is kept across steps included.
    """

    stage: str
    tokens: int
    kept: int
    theoretical: float
    ratios: tuple[float, ...]
    dense_seconds: float
    merged_seconds: float
    plans: int
    dense_bytes: int | None = None
    merged_bytes: int | None = None

    @property
    def measured(self) -> float:
        """Median of the paired ratios."""
        return statistics.median(self.ratios)

    @property
    def efficiency(self) -> float:
        """Measured speedup over theoretical speedup."""
        return self.measured / self.theoretical


def bench_stages(
    model: BenchModel, recipe: Recipe, setup: BenchSetup, on_run: Callable[[], None] = lambda: None
) -> tuple[StageTiming, ...]:
    """Time every stage of a recipe at one constant ratio, each merged call paired with a dense one.

    Args:
        model: What to build, with random weights.
        recipe: The recipe; its ratio curve is replaced, its regular dense steps are left out.
        setup: Sizes and numbers.
        on_run: Called after each pair, for progress bars.

    Raises:
        ScheduleError: The recipe cannot remove the ratio at this size.
    """
    flat = at_one_ratio(recipe, setup.ratio)
    pairing = pair_of_models(model, flat, setup)
    size, count = pairing.size, steps_for(flat, setup.runs + 2)
    report = explain(
        pairing.merged, steps=count, grid=size.grid, batch=size.batch, text=size.text, quiet=True
    )
    schedule = pairing.rewriting.runtime.schedule(count, size.grid, size.text)
    timings = []
    with torch.no_grad(), steps(pairing.merged, count, cfg_halves=model.halves) as clock:
        pairing.run_dense()
        dense_bytes = pairing.peak(pairing.run_dense, setup)
        for _ in range(2):  # the dense steps that features are stored in
            pairing.run_merged()
            clock.advance()
        for phase, seen in zip(schedule.phases[1:], report.phases[1:], strict=True):
            clock.step = seen.steps[0]
            pairs = [pairing.time_pair()]  # warm-up
            for _ in range(setup.runs):
                clock.advance()
                pairs.append(pairing.time_pair())
                on_run()
            clock.advance()  # a second call in one step would be another graph
            merged_bytes = pairing.peak(pairing.run_merged, setup)
            timing = _timing(report, seen, pairs[1:], plans_per_call(pairing.rewriting, phase))
            timings.append(replace(timing, dense_bytes=dense_bytes, merged_bytes=merged_bytes))
    return tuple(timings)


def plans_per_call(rewriting: Rewriting, phase: Phase) -> int:
    """How many plans a call makes in a phase: one for each group of blocks that merge."""
    recipe, stage = rewriting.recipe, phase.stage
    if stage is None or not phase.fresh_plan or not recipe.stages[stage].method.merges:
        return 0
    merging = (
        binding.index
        for binding in rewriting.bindings.values()
        if any(Variant(stage=stage).key in program.functions for program in binding.programs.values())
    )
    return len({index // recipe.plan.every_layers for index in merging})


def at_one_ratio(recipe: Recipe, ratio: float) -> Recipe:
    """The recipe with one ratio in all stages, merging in every step but the first two, wherever it says.

    A recipe, or a stage, whose ratio is full keeps that. Rules for single blocks are left out: few are built here.
    """
    own = {stage.name: {"ratio": None} for stage in recipe.stages if not isinstance(stage.ratio, FullRatio)}
    flat = recipe.override(
        {
            "stages": own,
            "sites.*.expect": None,
            "layers": [],
            "gate": "off",
            "keep_dense": {"first_steps": 2, "last_steps": 0, "every_steps": None, "layers": []},
        }
    )
    if isinstance(recipe.ratio, FullRatio):
        return flat
    return flat.override({"ratio": {"curve": "constant", "start": ratio}})


def steps_for(recipe: Recipe, calls: int) -> int:
    """Enough denoising steps for so many calls in the shortest stage, behind the dense ones."""
    ends = [stage.until for stage in recipe.stages]
    share = min(end - start for start, end in zip([0.0, *ends], ends, strict=False))
    return int((calls + 2) / share) + 1


def _timing(
    report: Explanation, phase: PhaseReport, pairs: list[tuple[float, float]], plans: int
) -> StageTiming:
    tokens = tokens_on(report.grid)
    return StageTiming(
        stage=phase.label,
        tokens=tokens,
        kept=tokens - phase.removed,
        theoretical=report.dense.total / phase.macs.total,
        ratios=tuple(dense / merged for dense, merged in pairs),
        dense_seconds=statistics.median(dense for dense, _ in pairs),
        merged_seconds=statistics.median(merged for _, merged in pairs),
        plans=plans,
    )


def break_down(model: BenchModel, recipe: Recipe, setup: BenchSetup) -> dict[str, dict[str, float]]:
    """Share of plan, merge, unmerge, features and the rest in a merged call of each stage, run eagerly.

    Args:
        model: What to build, with random weights.
        recipe: The recipe; its ratio curve is replaced, its regular dense steps are left out.
        setup: Sizes and numbers.
    """
    flat = at_one_ratio(recipe, setup.ratio)
    pairing = pair_of_models(model, flat, replace(setup, compiled=False))
    count = steps_for(flat, 6)
    shares: dict[str, dict[str, float]] = {}
    with torch.no_grad(), steps(pairing.merged, count, cfg_halves=model.halves) as clock:
        for _ in range(2):
            pairing.run_merged()
            clock.advance()
        schedule = pairing.rewriting.runtime.schedule(
            count, pairing.size.grid, pairing.size.text, pairing.size.batch
        )
        for step in range(2, count):
            phase = schedule.phase(step)
            name = "dense" if phase.stage is None else flat.stages[phase.stage].name
            if name in shares or phase.stage is None:
                continue
            clock.step = step

            def run() -> None:
                pairing.run_merged()
                clock.advance()  # a second call in one step has features of its own, and would store them

            shares[name] = breakdown(pairing.rewriting, run, setup.device)
    return shares
