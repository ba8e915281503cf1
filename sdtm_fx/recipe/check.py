"""What the parts of a recipe demand of each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sdtm_fx.errors import nearest
from sdtm_fx.methods import Skip
from sdtm_fx.recipe.check_caches import check_caches
from sdtm_fx.recipe.check_inside import check_inside
from sdtm_fx.recipe.check_keys import check_keys, check_proportional
from sdtm_fx.recipe.check_layers import check_layers, check_reduce
from sdtm_fx.recipe.check_plans import check_destinations, check_importance, check_kept, check_sharing
from sdtm_fx.recipe.check_ratios import check_ratios
from sdtm_fx.recipe.check_spans import check_spans
from sdtm_fx.recipe.check_tokens import check_tokens
from sdtm_fx.recipe.match import compile_match
from sdtm_fx.recipe.problems import KeyPath, Problem, misfit, show_choices

if TYPE_CHECKING:
    from sdtm_fx.recipe.schema import Recipe


def find_problems(recipe: Recipe) -> tuple[Problem, ...]:
    """Return every contradiction between the parts of a recipe whose fields are valid each on its own."""
    return (
        *_check_names(recipe),
        *_check_matches(recipe),
        *_check_ends(recipe),
        *_check_stage_sites(recipe),
        *check_tokens(recipe),
        *check_ratios(recipe),
        *_check_reuse(recipe),
        *check_caches(recipe),
        *check_sharing(recipe),
        *check_destinations(recipe),
        *check_kept(recipe),
        *check_layers(recipe),
        *check_reduce(recipe),
        *check_importance(recipe),
        *check_keys(recipe),
        *check_proportional(recipe),
        *check_spans(recipe),
        *check_inside(recipe),
    )


def _check_names(recipe: Recipe) -> Iterator[Problem]:
    yield from _duplicates([site.id for site in recipe.sites], "sites", "id")
    yield from _check_span_names(recipe)
    yield from _duplicates([stage.name for stage in recipe.stages], "stages", "name")
    for index, stage in enumerate(recipe.stages):
        for position, site in enumerate(stage.sites):
            if site in stage.sites[:position]:
                yield misfit(
                    ("stages", index, "sites", position), f"{site!r} a second time", "each site once"
                )
    for position, share in enumerate(recipe.plan.share):
        if share in recipe.plan.share[:position]:
            yield misfit(
                ("plan", "share", position), f"{share!r} a second time", "each of 'cfg', 'batch' once"
            )


def _check_span_names(recipe: Recipe) -> Iterator[Problem]:
    taken = [site.id for site in recipe.sites]
    for index, span in enumerate(recipe.spans):
        if span.id in taken:
            yield misfit(
                ("spans", index, "id"), f"{span.id!r} a second time", "a different id for each site and span"
            )
        taken.append(span.id)


def _duplicates(names: Sequence[str], section: str, key: str) -> Iterator[Problem]:
    for index, name in enumerate(names):
        if name in names[:index]:
            yield misfit((section, index, key), f"{name!r} a second time", f"a different {key} for each")


def _check_matches(recipe: Recipe) -> Iterator[Problem]:
    patterns: list[tuple[KeyPath, str]] = [
        (("sites", index, "match"), site.match) for index, site in enumerate(recipe.sites)
    ]
    patterns += [
        (("keep_dense", "layers", index), layer)
        for index, layer in enumerate(recipe.keep_dense.layers)
        if isinstance(layer, str)
    ]
    patterns += [(("layers", index, "match"), rule.match) for index, rule in enumerate(recipe.layers)]
    for path, pattern in patterns:
        try:
            compile_match(pattern)
        except ValueError as error:
            yield misfit(path, str(error), "a glob over module paths, or re: and a regular expression")


def _check_ends(recipe: Recipe) -> Iterator[Problem]:
    before = 0.0
    for index, stage in enumerate(recipe.stages):
        if stage.until <= before:
            yield misfit(
                ("stages", index, "until"),
                f"{stage.until:g} after {before:g}",
                f"more than {before:g}, at most 1",
            )
        before = stage.until
    if before != 1:
        yield misfit(("stages", len(recipe.stages) - 1, "until"), f"{before:g} in the last stage", "1")


def _check_stage_sites(recipe: Recipe) -> Iterator[Problem]:
    known = [site.id for site in recipe.sites] + [span.id for span in recipe.spans]
    has_attention = any(site.kind == "attention" for site in recipe.sites)
    for index, stage in enumerate(recipe.stages):
        for position, site in enumerate(stage.sites):
            if site not in known:
                path = ("stages", index, "sites", position)
                yield misfit(path, f"the unknown site {site!r}", show_choices(known), nearest(site, known))
        if stage.method.reads_attention() and not has_attention:
            yield misfit(
                ("stages", index, "method"),
                f"{stage.method.name}, which reads attention, in a recipe without a site of kind 'attention'",
                "a recipe that describes the attention sites too (no stage has to merge them)",
            )


def _check_reuse(recipe: Recipe) -> Iterator[Problem]:
    keep = recipe.keep_dense
    skipping = [index for index, stage in enumerate(recipe.stages) if isinstance(stage.method, Skip)]
    if recipe.reuse is None:
        for index in skipping:
            yield misfit(
                ("stages", index, "method"),
                "skip without reuse",
                "skip with a section reuse: it forecasts everything",
            )
        return
    needed = recipe.reuse.order + 1
    if keep.every_steps is None and len(keep.named) < needed:
        found = f"order {recipe.reuse.order} with {keep.first_steps} dense first steps and no every_steps"
        yield misfit(
            ("reuse", "order"),
            found,
            f"keep_dense with every_steps, or with first_steps of {needed} or more, or with as many steps",
        )
