"""The spans of a rewriting, as `explain` lists them."""

from __future__ import annotations

from collections.abc import Iterator

from sdtm_fx.cost.decision import GateDecision
from sdtm_fx.explaining.report import SpanReport
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.phase import Phase, Schedule
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.programs import Program
from sdtm_fx.rewriting.rewriting import Rewriting
from sdtm_fx.rewriting.spans import SpanPlace, active_span, any_span, sites_inside
from sdtm_fx.runtime.call import Variant
from sdtm_fx.runtime.inside import inside_of


def short_span(
    recipe: Recipe, program: Program, phase: Phase, left_out: frozenset[str] = frozenset()
) -> SpanPlace | None:
    """The span whose merged tokens a block runs on in a phase, without what the cost gate leaves out."""
    place = active_span(recipe, program.spans, Variant(stage=phase.stage, left_out=left_out))
    return place if place is not None and place.is_short(recipe.spans[place.span_index]) else None


def removed_further(rewriting: Rewriting, program: Program, phase: Phase, site: str, tokens: int) -> int:
    """How many slots of a span a site inside of it removes in a phase.

    Args:
        rewriting: The rewriting.
        program: That of the site's block.
        phase: The phase.
        site: Id of the site.
        tokens: N.
    """
    recipe = rewriting.recipe
    inner = site in sites_inside(recipe, phase.stage) and short_span(recipe, program, phase) is not None
    if phase.stage is None or not inner:
        return 0
    inside = inside_of(recipe.stages[phase.stage], tokens - phase.remove, recipe.plan.round_to)
    return 0 if inside is None else inside.remove


def span_reports(
    rewriting: Rewriting, schedule: Schedule, decision: GateDecision | None, grid: TokenGrid
) -> Iterator[SpanReport]:
    """Yield every run of blocks of every span, in the phases that use it, at a grid of (height, width) tokens."""
    recipe, layers = rewriting.recipe, rewriting.runtime.layers
    for index, phase in enumerate(schedule.phases):
        first, blocks, variant = "", 0, Variant(stage=phase.stage)
        gated = {} if decision is None else decision.variants(variant, phase.remove)
        for path, binding in rewriting.bindings.items():
            place = any_span(recipe, binding.spans, gated.get(path, variant))
            if place is None or phase.stage is None:
                continue
            span, method = recipe.spans[place.span_index], recipe.stages[phase.stage].method
            first, blocks = (path, 0) if place.first else (first, blocks)
            blocks += place.is_short(span)
            if place.last:
                tokens = tokens_on(layers.grid(binding.index, grid))
                kept = tokens - layers.remove(binding.index, phase.remove, method, grid)
                residual = span.residual if method.merges else "forecast"
                yield SpanReport(index, span.id, first, path, span.enter, residual, blocks, tokens, kept)
