"""What rules for blocks, and what becomes of the tokens of a slot, demand of the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sdtm_fx.methods import Skip
from sdtm_fx.recipe.problems import Problem, misfit

if TYPE_CHECKING:
    from sdtm_fx.recipe.schema import Recipe


def check_layers(recipe: Recipe) -> Iterator[Problem]:
    """Check that every rule for blocks changes something that can be changed."""
    skips = any(isinstance(stage.method, Skip) for stage in recipe.stages)
    for index, rule in enumerate(recipe.layers):
        if rule.scale is None and rule.reduce is None:
            yield misfit(("layers", index), "a rule that changes nothing", "scale, reduce, or both")
        if rule.scale is not None and 0 < rule.scale < 1 and skips:
            yield misfit(
                ("layers", index, "scale"),
                f"{rule.scale:g} in a recipe with a stage that skips",
                "0 or 1 there: skip forecasts a site as a whole",
            )


def check_reduce(recipe: Recipe) -> Iterator[Problem]:
    """Check that there are slots to reduce, and that more than their weighted mean can be had."""
    for index, stage in enumerate(recipe.stages):
        path = ("stages", index, "reduce")
        if stage.reduce is not None and not stage.method.merges:
            yield misfit(
                path, f"{stage.reduce!r} for method {stage.method.name}", "no reduce: it merges nothing"
            )
        if stage.method.assigns:
            continue
        why = f"method {stage.method.name}, whose slots are weighted means of tokens"
        if stage.reduce not in (None, "mean"):
            yield misfit(path, f"{stage.reduce!r} for {why}", "'mean', or no reduce")
        for place, rule in enumerate(recipe.layers):
            if rule.reduce not in (None, "mean"):
                found = f"{rule.reduce!r} in a recipe with {why}, in stage {stage.name!r}"
                yield misfit(("layers", place, "reduce"), found, "'mean', or no reduce")
