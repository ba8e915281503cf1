"""The spans of a rewriting, as `explain` lists them."""

from __future__ import annotations

from collections.abc import Iterator

from sdtm_fx.explaining.report import SpanReport
from sdtm_fx.phase import Phase, Schedule
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.programs import Program
from sdtm_fx.rewriting.rewriting import Rewriting
from sdtm_fx.rewriting.spans import SpanPlace, active_span
from sdtm_fx.runtime.call import Variant


def short_span(recipe: Recipe, program: Program, phase: Phase) -> SpanPlace | None:
    """The span whose merged tokens a block runs on in a phase."""
    place = active_span(recipe, program.spans, Variant(stage=phase.stage))
    return place if place is not None and place.is_short(recipe.spans[place.span_index]) else None


def span_reports(rewriting: Rewriting, schedule: Schedule, grid: tuple[int, int]) -> Iterator[SpanReport]:
    """Yield every run of blocks of every span, in the phases that use it, at a grid of (height, width) tokens."""
    recipe, layers = rewriting.recipe, rewriting.runtime.layers
    for index, phase in enumerate(schedule.phases):
        first, blocks = "", 0
        for path, binding in rewriting.bindings.items():
            place = active_span(recipe, binding.spans, Variant(stage=phase.stage))
            if place is None:
                continue
            span = recipe.spans[place.span_index]
            first, blocks = (path, 0) if place.first else (first, blocks)
            blocks += place.is_short(span)
            if place.last:
                height, width = layers.grid(binding.index, grid)
                assert phase.stage is not None  # a dense step is in no span
                method = recipe.stages[phase.stage].method
                kept = height * width - layers.remove(binding.index, phase.remove, method, grid)
                yield SpanReport(
                    index, span.id, first, path, span.enter, span.residual, blocks, height * width, kept
                )
