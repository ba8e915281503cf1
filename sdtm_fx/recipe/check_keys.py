"""What keys that are merged alone, or weighed by the size of their slot, demand of the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sdtm_fx.methods import Skip, ToFu
from sdtm_fx.recipe.problems import Problem, misfit

if TYPE_CHECKING:
    from sdtm_fx.recipe.schema import Recipe


def keyed_sites(recipe: Recipe) -> set[str]:
    """Ids of the sites whose keys are reduced."""
    return {site.id for site in recipe.sites if site.merge == "keys"}


def check_keys(recipe: Recipe) -> Iterator[Problem]:
    """Check that keys can be merged where a recipe says so."""
    for index, site in enumerate(recipe.sites):
        if site.merge == "keys" and site.kind != "attention":
            yield misfit(
                ("sites", index, "merge"),
                f"'keys' at a site of kind {site.kind!r}",
                "'keys' where attention is",
            )
    keyed = keyed_sites(recipe)
    for index, stage in enumerate(recipe.stages):
        reduced = [site for site in stage.sites if site in keyed]
        if reduced and isinstance(stage.method, Skip):
            yield misfit(
                ("stages", index, "sites"),
                f"{reduced[0]!r}, of which only keys are merged, in a stage that skips",
                "sites of whole tokens: a skipped site is forecast, and keys are not",
            )
        if reduced and not stage.method.assigns:
            yield misfit(
                ("stages", index, "sites"),
                f"{reduced[0]!r}, of which only keys are merged, with method {stage.method.name}, which mixes slots",
                "a method under which every token has one slot, or a site of whole tokens",
            )
        own = stage.method.reduce if isinstance(stage.method, ToFu) else None
        if reduced and "mlerp" in {stage.reduce or own, *(rule.reduce for rule in recipe.layers)}:
            yield misfit(
                ("stages", index, "reduce"),
                f"'mlerp' at {reduced[0]!r}, of which only keys are merged, head by head",
                "'mean' or 'prune' there",
            )
    if recipe.reuse is not None and all(site in keyed for stage in recipe.stages for site in stage.sites):
        yield misfit(
            ("reuse",),
            "reuse in a recipe that merges keys alone",
            "reuse beside a site of whole tokens: where queries are dense, nothing is forecast",
        )


def check_proportional(recipe: Recipe) -> Iterator[Problem]:
    """Check that there are keys that stand for several tokens, and that it is known for how many."""
    attention = {site.id for site in recipe.sites if site.kind == "attention"}
    merged = {site for stage in recipe.stages if stage.method.merges for site in stage.sites}
    spans = {span.id for span in recipe.spans}  # all attention in their blocks runs on merged tokens
    weighed = attention | spans if attention else set()
    if recipe.plan.proportional and not weighed & merged:
        yield misfit(
            ("plan", "proportional"),
            "true where no stage merges attention",
            "proportional attention beside a stage that merges a site of kind 'attention'",
        )
    for stage in recipe.stages:
        if recipe.plan.proportional and not stage.method.assigns and weighed & set(stage.sites):
            yield misfit(
                ("plan", "proportional"),
                f"true with method {stage.method.name} in stage {stage.name!r}, which mixes slots",
                "false there: a slot has a size only where every token has one slot",
            )
