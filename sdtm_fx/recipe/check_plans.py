"""What plans that are shared, kept, or made from an earlier step demand of the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sdtm_fx.methods import METHODS, Skip
from sdtm_fx.recipe.check_keys import keyed_sites
from sdtm_fx.recipe.problems import Problem, misfit
from sdtm_fx.recipe.ratio import ThresholdRatio

if TYPE_CHECKING:
    from sdtm_fx.recipe.schema import Recipe


def check_sharing(recipe: Recipe) -> Iterator[Problem]:
    """Check that one rotary table serves every sample of a batch."""
    rotary, keyed = {site.id for site in recipe.sites if site.rotary is not None}, keyed_sites(recipe)
    for index, stage in enumerate(recipe.stages):
        # Keys are reduced behind the tables.
        merged = [site for site in stage.sites if site in rotary - keyed]
        if merged and not isinstance(stage.method, Skip) and "batch" not in recipe.plan.share:
            yield misfit(
                ("stages", index, "sites"),
                f"{merged[0]!r}, whose rotary tables have no batch axis, with a plan per sample",
                "plan.share with 'batch'",
            )


def check_destinations(recipe: Recipe) -> Iterator[Problem]:
    """Check that destinations outlive plans, and that there are any."""
    every, path = recipe.plan.destinations_every, ("plan", "destinations_every")
    if every is None:
        return
    if every % recipe.plan.every_steps:
        yield misfit(
            path,
            f"{every} beside every_steps {recipe.plan.every_steps}",
            f"a multiple of {recipe.plan.every_steps}: destinations change only where a plan is made",
        )
    for stage in recipe.stages:
        if stage.method.merges and not stage.method.chooses_destinations:
            choosing = [name for name, method in METHODS.items() if method.chooses_destinations]
            yield misfit(
                path,
                f"{every} with method {stage.method.name} in stage {stage.name!r}, which has no destinations of "
                "its own",
                f"only methods that choose destinations before they weigh tokens: {', '.join(choosing)}",
            )


def check_kept(recipe: Recipe) -> Iterator[Problem]:
    """Check that some stage keeps the plans that are to be kept: under a threshold every step counts anew."""
    merging = [stage for stage in recipe.stages if stage.method.merges]
    fixed = [s for s in merging if not isinstance(s.ratio or recipe.ratio, ThresholdRatio)]
    if recipe.plan.every_steps > 1 and merging and not fixed:
        yield misfit(
            ("plan", "every_steps"),
            f"{recipe.plan.every_steps} where every stage that merges has a threshold, whose steps all make plans",
            "a ratio without a threshold in some stage, or 1",
        )


def check_importance(recipe: Recipe) -> Iterator[Problem]:
    """Check that a step comes before the first that reads its output."""
    keep = recipe.keep_dense
    reads = "importance" in recipe.stages[0].method.wants()
    if reads and 0 not in keep.named and keep.every_steps is None:
        yield misfit(
            ("keep_dense", "first_steps"),
            f"0 with method {recipe.stages[0].method.name}, which reads the output of the step before",
            "1 or more",
        )
