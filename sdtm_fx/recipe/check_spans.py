"""What spans demand of the other parts of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sdtm_fx.recipe.match import compile_match
from sdtm_fx.recipe.problems import KeyPath, Problem, misfit
from sdtm_fx.recipe.ratio import ThresholdRatio
from sdtm_fx.recipe.span import SpanSpec

if TYPE_CHECKING:
    from sdtm_fx.recipe.schema import Recipe


def check_spans(recipe: Recipe) -> Iterator[Problem]:
    """Yield every contradiction between the spans of a recipe and the rest of it."""
    for index, span in enumerate(recipe.spans):
        yield from _check_patterns(index, span)
    spans = {span.id: span for span in recipe.spans}
    for index, stage in enumerate(recipe.stages):
        for position, name in enumerate(stage.sites):
            if name in spans:
                path = ("stages", index, "sites", position)
                yield from _check_use(path, recipe, index, spans[name])
    merged = any(name in spans for stage in recipe.stages for name in stage.sites if stage.method.merges)
    if merged and recipe.reuse is not None:
        yield misfit(
            ("reuse",),
            "forecasts beside spans that merge",
            "no reuse: inside such a span tokens have no dense features that a forecast could start from",
        )


def _check_patterns(index: int, span: SpanSpec) -> Iterator[Problem]:
    for key in ("first", "last"):
        pattern = getattr(span, key)
        if isinstance(pattern, str):
            try:
                compile_match(pattern)
            except ValueError as error:
                found = "a number, a glob over block paths, or re: and a regular expression"
                yield misfit(("spans", index, key), str(error), found)


def _check_use(path: KeyPath, recipe: Recipe, index: int, span: SpanSpec) -> Iterator[Problem]:
    stage = recipe.stages[index]
    if not stage.method.merges:
        if span.enter == "end":
            yield misfit(
                path,
                f"the span {span.id!r}, which begins behind its first block, with method {stage.method.name}",
                "a span with enter 'start': its first block is forecast too",
            )
        return
    if stage.method.reads_attention() and span.enter == "start":
        yield misfit(
            path,
            f"the span {span.id!r}, which begins in front of the attention that method {stage.method.name} reads",
            "a span with enter 'end'",
        )
    if isinstance(stage.ratio or recipe.ratio, ThresholdRatio):
        yield misfit(
            path, f"the span {span.id!r} with a threshold", "a ratio: a threshold is measured at sites"
        )
    if span.rotary is not None and "batch" not in recipe.plan.share:
        yield misfit(
            path,
            f"{span.id!r}, whose rotary tables have no batch axis, with a plan per sample",
            "plan.share with 'batch'",
        )
