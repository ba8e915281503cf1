"""What methods that take stored values for the tokens they leave out demand of the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sdtm_fx.recipe.check_keys import keyed_sites
from sdtm_fx.recipe.problems import Problem, misfit

if TYPE_CHECKING:
    from sdtm_fx.recipe.schema import Recipe

_REUSE = "reuse: {order: 0, weight: 0, update: tokens}"


def check_caches(recipe: Recipe) -> Iterator[Problem]:
    """Check that something is stored for tokens that are not computed, and that nothing else is asked of them."""
    attention, keyed = {site.id for site in recipe.sites if site.kind == "attention"}, keyed_sites(recipe)
    for index, stage in enumerate(recipe.stages):
        if not stage.method.caches:
            continue
        name = f"method {stage.method.name} in stage {stage.name!r}"
        if recipe.reuse is None:
            yield misfit(
                ("stages", index, "method"),
                f"{stage.method.name} without reuse",
                f"{stage.method.name} with a section {_REUSE}, which is where the tokens that it leaves out come from",
            )
        elif recipe.reuse.weight != 0:
            yield misfit(
                ("reuse", "weight"),
                f"{recipe.reuse.weight:g} with {name}, which computes nothing for the tokens that it leaves out",
                "0: there is no new value to weigh",
            )
        reduced = [site for site in stage.sites if site in keyed]
        if reduced:
            yield misfit(
                ("stages", index, "sites"),
                f"{reduced[0]!r}, of which only keys are merged, with {name}, which takes outputs from a cache",
                "sites of whole tokens: keys are not stored",
            )
        yield from _check_slots(recipe, index, name, attention)


def _check_slots(recipe: Recipe, index: int, name: str, attention: set[str]) -> Iterator[Problem]:
    stage = recipe.stages[index]
    accepted = "'prune', or no reduce: tokens are computed alone"
    if stage.reduce not in (None, "prune"):
        yield misfit(("stages", index, "reduce"), f"{stage.reduce!r} for {name}", accepted)
    for place, rule in enumerate(recipe.layers):
        if rule.reduce not in (None, "prune"):
            yield misfit(("layers", place, "reduce"), f"{rule.reduce!r} in a recipe with {name}", accepted)
    if recipe.plan.proportional and attention & set(stage.sites):
        yield misfit(
            ("plan", "proportional"),
            f"true with {name}, which has no slots",
            "false there: a slot is one token",
        )
