"""Serving: which stages dense steps store features for, and so which graphs a recipe asks for."""

from __future__ import annotations

from sdtm_fx.base_plan import Unmerging
from sdtm_fx.recipe.ratio import ThresholdRatio
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.spans import uses_spans
from sdtm_fx.runtime.call import Variant


def variants_of(recipe: Recipe) -> tuple[Variant, ...]:
    """Every variant that some step of the recipe may run."""
    variants: list[Variant] = []
    for index in range(len(recipe.stages)):
        variants.append(Variant(stage=index))
        variants.append(dense_variant(recipe, index))
    variants.append(Variant(stage=None))  # dense steps that no stage follows
    return tuple(dict.fromkeys(variants))


def dense_variant(recipe: Recipe, stage: int) -> Variant:
    """What a dense step before or inside a stage does beside the model's own work.

    Stages that read the same features share the dense steps that store them: one graph less. So does a stage that
    merges, with a later one that forecasts the same sites, and perhaps more: when the later one begins, it finds two
    values of each feature, from which it can draw a line.
    """
    ratio = recipe.stages[stage].ratio or recipe.ratio
    return Variant(
        stage=None,
        refresh=_serving(recipe, stage) if recipe.reuse is not None else None,
        measure=stage if isinstance(ratio, ThresholdRatio) else None,
    )


def parts_read_alone(recipe: Recipe, variant: Variant, joined: frozenset[str]) -> frozenset[str]:
    """Of sites whose outputs join, those that some stage reads without the others, from the same dense steps.

    Args:
        recipe: The recipe.
        variant: That of the graph.
        joined: Ids of the sites, whole.
    """
    served = variant.refresh if variant.stage is None else dense_variant(recipe, variant.stage).refresh
    parts = (
        joined.intersection(stage.sites)
        for index, stage in enumerate(recipe.stages)
        if served is not None and dense_variant(recipe, index).refresh == served
    )
    return frozenset().union(*(part for part in parts if part != joined))


def _serving(recipe: Recipe, stage: int) -> int:
    """The stage that says what is stored for a stage: the last and widest that covers it, or the first of its like."""
    covering = [i for i in range(stage, len(recipe.stages)) if i == stage or _covers(recipe, i, stage)]
    widest = max(covering, key=lambda index: (len(_read(recipe, index)), index))
    alike = (i for i in range(widest + 1) if _reads(recipe, i) == _reads(recipe, widest))
    return next(alike)


def _covers(recipe: Recipe, later: int, stage: int) -> bool:
    """Whether what a later stage forecasts holds all that a stage reads."""
    if recipe.stages[later].method.merges or uses_spans(recipe):
        return False
    unmerged = _unmerging(recipe, later) is _unmerging(recipe, stage)
    return unmerged and _read(recipe, stage) <= _read(recipe, later)


def _read(recipe: Recipe, index: int) -> frozenset[str]:
    """The sites of a stage that read features: all but those that merge keys alone."""
    keyed = {site.id for site in recipe.sites if site.merge == "keys"}
    return frozenset(recipe.stages[index].sites) - keyed


def _unmerging(recipe: Recipe, index: int) -> Unmerging:
    return recipe.stages[index].method.unmerging()


def _reads(recipe: Recipe, index: int) -> tuple[frozenset[str], bool, Unmerging]:
    return _read(recipe, index), not recipe.stages[index].method.merges, _unmerging(recipe, index)
