"""Graphs without some of their sites: those that the cost gate may choose from, and spans by themselves."""

from __future__ import annotations

from dataclasses import replace

from sdtm_fx.cost.gate import subsets
from sdtm_fx.cost.model import MeasuredBlock, sites_of
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.programs import ProgramCache
from sdtm_fx.rewriting.serving import dense_variant
from sdtm_fx.rewriting.spans import active_span, sites_inside
from sdtm_fx.runtime.call import Variant


def add_variants(recipe: Recipe, cache: ProgramCache, block: MeasuredBlock) -> None:
    """Rewrite a block for every set of sites that the gate may keep."""
    for stage in range(len(recipe.stages)):
        whole = sites_of(recipe, stage, block)
        for kept in subsets(sorted(whole)):
            for variant in (Variant(stage=stage), dense_variant(recipe, stage)):
                cache.gated(block.program, block.block, replace(variant, left_out=whole - kept))


def add_spans_alone(recipe: Recipe, cache: ProgramCache, block: MeasuredBlock) -> None:
    """Rewrite a block in which sites merge inside of a span without them: what they save is measured against it."""
    here = frozenset(recipe.sites[place.site_index].id for place in block.program.places)
    for stage in range(len(recipe.stages)):
        variant = Variant(stage=stage, left_out=here.intersection(sites_inside(recipe, stage)))
        if variant.left_out and active_span(recipe, block.program.spans, variant) is not None:
            cache.gated(block.program, block.block, variant)
