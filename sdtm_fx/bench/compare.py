"""Recipes beside each other on one model: what finding the tokens takes, and what merging them reaches."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sdtm_fx.bench.configs import BenchModel, config_of
from sdtm_fx.bench.measure import at_one_ratio, steps_for
from sdtm_fx.bench.pairing import BenchSetup, Pairing, pair_of_models
from sdtm_fx.bench.timing import seconds
from sdtm_fx.explaining.explain import explain
from sdtm_fx.explaining.report import PhaseReport
from sdtm_fx.grids import tokens_on
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewrite import rewrite, steps
from sdtm_fx.schedule import build_schedule


@dataclass(frozen=True)
class Triple:
    """Three calls in a row, in seconds.

    Attributes:
        dense: Of the dense model.
        fresh: Of the merged one in a step that makes its plans.
        kept: Of the merged one in the next step, which keeps them.
    """

    dense: float
    fresh: float
    kept: float


@dataclass(frozen=True)
class Contender:
    """One stage of one recipe.

    Attributes:
        recipe: Name of the recipe.
        stage: Name of the stage.
        method: Name of its method.
        tokens: Image tokens before.
        kept: Image tokens at merged sites.
        dense_macs: Of a dense call.
        fresh_macs: Of a merged call that makes its plans.
        kept_macs: Of a merged call that keeps them.
        triples: What was timed.
    """

    recipe: str
    stage: str
    method: str
    tokens: int
    kept: int
    dense_macs: float
    fresh_macs: float
    kept_macs: float
    triples: tuple[Triple, ...]

    @property
    def theoretical(self) -> float:
        """Dense MACs over those of a call that makes its plans."""
        return self.dense_macs / self.fresh_macs

    @property
    def measured(self) -> float:
        """The same in time: the median over triples."""
        return statistics.median(t.dense / t.fresh for t in self.triples)

    @property
    def efficiency(self) -> float:
        """Measured speedup over theoretical speedup."""
        return self.measured / self.theoretical

    @property
    def planning_macs(self) -> float:
        """What finding the tokens takes, as a part of a dense call's MACs."""
        return (self.fresh_macs - self.kept_macs) / self.dense_macs

    @property
    def planning_times(self) -> tuple[float, ...]:
        """What finding the tokens takes, as a part of a dense call's time; one for each triple.

        A difference of two calls: where it is small beside how much calls vary, it may come out negative.
        """
        return tuple((t.fresh - t.kept) / t.dense for t in self.triples)

    @property
    def planning_time(self) -> float:
        """The median of `planning_times`."""
        return statistics.median(self.planning_times)


def compare_recipes(
    model: BenchModel,
    recipes: Sequence[Recipe],
    setup: BenchSetup,
    on_run: Callable[[], None] = lambda: None,
) -> tuple[Contender, ...]:
    """Time every stage of every recipe that merges: a dense call, one with fresh plans, one with kept plans.

    Each recipe runs as in `bench_stages`, at one ratio (one whose ratio is full keeps that). Plans are made in every
    second step. Forecasts, whose cost is not that of a method, are left out unless a stage lives on them.

    Args:
        model: What to build, with random weights.
        recipes: The recipes; stages that skip are left out.
        setup: Sizes and numbers.
        on_run: Called after each triple, for progress bars.

    Raises:
        SdtmFxError: A recipe does not fit the model, or cannot remove the ratio at this size; nothing was timed.
    """
    for recipe in recipes:
        _check(model, recipe, setup)
    return tuple(found for recipe in recipes for found in _compare_one(model, recipe, setup, on_run))


def compared_stages(recipes: Sequence[Recipe]) -> int:
    """How many stages `compare_recipes` times."""
    return sum(stage.method.merges for recipe in recipes for stage in recipe.stages)


def _check(model: BenchModel, recipe: Recipe, setup: BenchSetup) -> None:
    """Rewrite and schedule on meta, so that the last of many recipes is not refused after an hour."""
    flat = _alternating(recipe, setup.ratio)
    with torch.device("meta"):
        built = model.build(**config_of(model, setup.layers)).eval().requires_grad_(False)
    rewrite(built, flat)
    build_schedule(flat, steps=steps_for(flat, 2), grid=setup.grid)


def _compare_one(
    model: BenchModel, recipe: Recipe, setup: BenchSetup, on_run: Callable[[], None]
) -> list[Contender]:
    flat = _alternating(recipe, setup.ratio)
    pairing = pair_of_models(model, flat, setup)
    count, size = steps_for(flat, 2 * (setup.runs + 2)), pairing.size
    report = explain(
        pairing.merged, steps=count, grid=size.grid, batch=size.batch, text=size.text, quiet=True
    )
    found = []
    with torch.no_grad(), steps(pairing.merged, count, cfg_halves=model.halves) as clock:
        pairing.run_dense()
        for _ in range(2):  # the dense steps, which some methods take scores from
            pairing.run_merged()
            clock.advance()
        for stage in flat.stages:
            if not stage.method.merges:
                continue
            fresh, kept = _phases_of(report.phases, stage.name)
            clock.step = fresh.steps[0]
            triples = []
            for run in range(setup.runs + 1):
                triples.append(_triple(pairing, clock.advance))
                if run:  # the first one compiles
                    on_run()
            tokens = tokens_on(size.grid)
            found.append(
                Contender(
                    recipe.name, stage.name, stage.method.name, tokens, tokens - fresh.removed,
                    report.dense.total, fresh.macs.total, kept.macs.total, tuple(triples[1:]),
                )
            )  # fmt: skip
    return found


def _triple(pairing: Pairing, advance: Callable[[], object]) -> Triple:
    dense, fresh = pairing.time_pair()
    advance()
    kept = seconds(pairing.run_merged, pairing.device)
    advance()
    return Triple(dense, fresh, kept)


def _alternating(recipe: Recipe, ratio: float) -> Recipe:
    """At one ratio, with plans of which every other step makes new ones."""
    flat = at_one_ratio(recipe, ratio).override({"plan.every_steps": 2, "plan.destinations_every": None})
    stores = any(stage.method.caches or not stage.method.merges for stage in flat.stages)
    return flat if stores else flat.override(reuse=None)


def _phases_of(phases: Sequence[PhaseReport], stage: str) -> tuple[PhaseReport, PhaseReport]:
    """The phase of a stage that makes plans, and the one that keeps them."""
    of = {phase.label: phase for phase in phases}
    return of[stage], of[f"{stage}, plan kept"]
