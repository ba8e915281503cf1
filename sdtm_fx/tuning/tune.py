"""`tune`: search the scale from dense through merging to forecast for the best recipe at a budget."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.evaluate.interval import Estimate, mean_interval, paired_differences
from sdtm_fx.evaluate.models import ModelSource, choose_prompts
from sdtm_fx.evaluate.sampling import Sampling
from sdtm_fx.evaluate.schedule_costs import probe_size
from sdtm_fx.grids import show_grid
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.tuning.goal import Goal
from sdtm_fx.tuning.measuring import Ruler, measuring
from sdtm_fx.tuning.pricing import Pricing
from sdtm_fx.tuning.rivals import Rival, rivals_at
from sdtm_fx.tuning.search import Judging, Search, Trial
from sdtm_fx.tuning.sensitivity import Sensitivity
from sdtm_fx.tuning.setting import Setting
from sdtm_fx.tuning.starts import Start, starting_points

FINALISTS = 4
"""Trials of every family that are drawn again on fresh images before one is chosen."""

TOGETHER = 4
"""Changes that are tried before a climb moves on; not the number of processes, which results must not depend on."""

CLIMBS = 3
"""Starting points that are climbed from."""

GLANCED = 1
"""Images that starting points are sifted by."""

TUNED = "tuned"
"""What the recipe that was found is called in tables."""


@dataclass(frozen=True)
class Finalist:
    """A recipe on images that took no part in finding it.

    Attributes:
        label: What it is.
        family: What kind of acceleration it is: "caching", "merging" or "mixed".
        speedup: Dense over total MACs.
        recipe: The recipe.
        held_out: Quality on held-out images.
    """

    label: str
    family: str
    speedup: float
    recipe: Recipe
    held_out: tuple[float, ...]

    @property
    def estimate(self) -> Estimate:
        """Mean quality on held-out images, with its interval."""
        return mean_interval(self.held_out)

    def ahead_of(self, other: Finalist) -> Estimate:
        """Mean difference to another finalist, image by image."""
        return mean_interval(paired_differences(self.held_out, other.held_out))


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        goal: What was searched for.
        tuned: The best.
        setting: Its setting.
        rivals: The best of each family among the starting points, then recipes that were written by hand.
        left_out: Why recipes that were written by hand are not among the rivals.
        trials: All that was tried, in order.
        sensitivities: Of the parts of the best starting point, the highest first.
        chosen_after: Seconds until the tuned recipe was chosen.
        seconds: How long it took, the last comparison included.
    """

    goal: Goal
    tuned: Finalist
    setting: Setting
    rivals: tuple[Finalist, ...]
    left_out: tuple[str, ...]
    trials: tuple[Trial, ...]
    sensitivities: tuple[Sensitivity, ...]
    chosen_after: float
    seconds: float


def tune(
    source: ModelSource,
    recipes: Sequence[Recipe],
    goal: Goal,
    *,
    against: Sequence[Recipe] = (),
    on_glance: Callable[[Start, int], None] = lambda start, of: None,
    on_trial: Callable[[Trial, float], None] = lambda trial, best: None,
    on_sensitivity: Callable[[Sensitivity], None] = lambda sensitivity: None,
) -> Tuned:
    """Search for the recipe of best quality that costs no more than a budget.

    What the recipes say themselves, and starting points of all families (step caches, merging with and without
    forecasts, mixes) are brought to the budget by the cost model and drawn once; the recipes, the best quarter, and the
    best few of every family are drawn on all images of the search. The best of them is drawn again with every site of a
    stage, and every group of blocks, computed whole; what gives most for its MACs is then left whole and paid for
    elsewhere. From the best of all that a climb changes one thing at a time: where dense steps lie, the fraction of
    each stage and how far it falls, its sites, stage boundaries, the forecast, how long plans serve, and blocks that
    stay whole. The best trials, the recipes, and the best starting points of every family are then drawn on fresh
    images; one is chosen by them, and all are compared on images that took part in nothing. Equal calls give equal
    results, unless they are stopped by the clock.

    Args:
        source: The model.
        recipes: Sites, and the methods of stages, that are searched; ratios of theirs are not. One at least. Of one
            whose stages forecast, dense steps and the order are searched; in spans, that takes least memory.
        goal: Budget, size and effort.
        against: More recipes to compare with on held-out images, brought to the budget as `recipes` are.
        on_glance: Called after each starting point that was drawn once, with their number.
        on_trial: Called after each trial, with the best quality so far.
        on_sensitivity: Called after each part whose sensitivity was measured.

    Raises:
        SdtmFxError: A recipe cannot be tuned, nothing meets the budget, or what rewriting and drawing raise.
    """
    started = time.monotonic()
    pipeline = source.load()
    bases = tuple(r.override({"sites.*.expect": None}) if source.is_toy else r for r in recipes)
    size = probe_size(
        pipeline,
        bases[0],
        steps=goal.steps,
        height=goal.height,
        width=goal.width,
        guidance_scale=goal.guidance,
    )
    rivals, left_out = rivals_at(goal.speedup, [*bases, *against], pipeline, size)
    pricing = Pricing(bases, pipeline, size, goal.speedup, goal.name)
    starts = starting_points(pricing)
    if not starts:
        raise SdtmFxError(
            f"tune: nothing reaches {goal.speedup:g}x at {goal.steps} steps on a {show_grid(size.grid)} grid, "
            "not even with one dense step; accepted: a lower speedup, or more steps"
        )
    ruler = Ruler(source, _sampling(source, goal), goal.quality, goal.threads)
    searched, chosen, held = goal.parts
    with measuring(ruler, goal.processes, pipeline) as measure:
        search = Search(
            pricing,
            lambda recipes: measure(recipes, searched),
            most=goal.trials,
            together=TOGETHER,
            groups=pricing.block_groups(goal.layer_groups),
            seed=goal.seed,
            glance=(lambda recipes: measure(recipes, searched[:GLANCED]))
            if len(searched) > GLANCED
            else None,
            on_glance=on_glance,
            on_trial=lambda trial: on_trial(trial, max(t.mean for t in search.trials)),
            on_sensitivity=on_sensitivity,
            out_of_time=lambda: goal.minutes is not None and time.monotonic() - started > goal.minutes * 60,
        )
        search.run(starts, CLIMBS)
        if not search.trials:
            raise SdtmFxError(
                f"tune: {goal.minutes or 0:g} minutes were over before any of {len(starts)} starting points was tried "
                f"on {goal.images} images; accepted: more minutes, or fewer images"
            )
        winners = _choose(search, starts, lambda recipes: measure(recipes, chosen))
        chosen_after = time.monotonic() - started
        contenders = [
            *(Rival(label, t.family, pricing.recipe(t.setting), t.speedup) for label, t in winners.items()),
            *rivals,
        ]
        last = measure([one.recipe for one in contenders], held)
    finalists = [
        Finalist(one.label, one.family, one.speedup, one.recipe, values)
        for one, values in zip(contenders, last, strict=True)
    ]
    return Tuned(
        goal, finalists[0], winners[TUNED].setting, tuple(finalists[1:]), tuple(left_out),
        tuple(search.trials), tuple(search.sensitivities), chosen_after, time.monotonic() - started,
    )  # fmt: skip


def _choose(search: Search, starts: Sequence[Start], judge: Judging) -> dict[str, Trial]:
    """The best trial, and the best starting point of every family, by fresh images; by what each is called.

    Recipes as they are written are drawn as well, however they looked: what is chosen is at least their equal.
    """
    begun = {start.setting for start in starts}
    rivals = {
        family: [t for t in search.best(len(search.trials), family) if t.setting in begun][:FINALISTS]
        for family in dict.fromkeys(start.family for start in starts)
    }
    as_written = {start.setting for start in starts if start.written}
    drawn = [
        *search.best(FINALISTS),
        *(trial for trials in rivals.values() for trial in trials),
        *(trial for trial in search.trials if trial.setting in as_written),
    ]
    contenders = [*{trial.setting: trial for trial in drawn}.values()]
    fresh = judge([search.pricing.recipe(trial.setting) for trial in contenders])
    marks = {t.setting: statistics.fmean(values) for t, values in zip(contenders, fresh, strict=True)}

    def ahead(trials: Sequence[Trial]) -> Trial:
        return max(trials, key=lambda trial: marks[trial.setting])

    named = {f"best {family} to start from": ahead(trials) for family, trials in rivals.items() if trials}
    return {TUNED: ahead(contenders), **named}


def _sampling(source: ModelSource, goal: Goal) -> Sampling:
    """All images: those of the search, those that choose, and those that are held out."""
    first, count = goal.first_seed, goal.parts[-1].stop
    return Sampling(
        prompts=choose_prompts(source, goal.prompts, count, first),
        seeds=tuple(range(first, first + count)),
        steps=goal.steps,
        height=goal.height,
        width=goal.width,
        guidance_scale=goal.guidance,
        batch=goal.batch,
        paired=count,
        judged=0,
    )
