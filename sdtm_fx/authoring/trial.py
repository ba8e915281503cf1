"""Trying a draft out: on a smaller copy with random weights, merging nothing and merging half."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import sdtm_fx
from sdtm_fx.authoring.running import (
    COPY,
    Check,
    all_finite,
    length_of,
    noted_calls,
    run_steps,
    tensors,
    worst_difference,
)
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.inspecting.arguments import CallSizes
from sdtm_fx.inspecting.small import SmallCopy, small_copy
from sdtm_fx.inspecting.survey import Survey
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.sites.matching import match_sites

_STEPS = 8
_RATIO = 0.5
_SLACK = 0.1


def try_draft(path: Path, survey: Survey, layers: int) -> list[Check]:
    """Load a draft and run it on a smaller copy of its model.

    Args:
        path: The draft.
        survey: What it was drafted from.
        layers: Most layers of each kind in the copy.

    Returns:
        The checks, up to the first that failed.
    """
    checks: list[Check] = []
    try:
        recipe = sdtm_fx.load_recipe(path)
        checks.append(Check("loads", True, f"{recipe.name}, {len(recipe.sites)} sites"))
        copy = small_copy(survey.subject, survey.call, layers)
        checks.append(Check("runs", True, f"a copy with {copy.said}"))
        checks.append(_nothing_merged(recipe, copy, survey))
        if checks[-1].passed:
            checks.append(_half_merged(recipe, copy, survey))
    except SdtmFxError as error:
        name = ("loads", "runs", "ratio 0", "ratio 0.5")[len(checks)]
        checks.append(Check(name, False, f"{type(error).__name__}: {error}"))
    return checks


def trial_sizes(survey: Survey) -> CallSizes:
    """A size with room for the windows on the coarsest grid."""
    coarsest = max(survey.level(site) for site in survey.sites) * (survey.patch or 1)
    sizes = survey.call.sizes
    factor = max(1, -(-4 * coarsest // min(sizes.height, sizes.width)))
    return replace(sizes, height=factor * sizes.height, width=factor * sizes.width)


def _nothing_merged(recipe: Recipe, copy: SmallCopy, survey: Survey) -> Check:
    """With ratio 0 every output must be that of the plain model, bit for bit."""
    arguments = copy.arguments(trial_sizes(survey))
    with torch.no_grad():
        expected = tensors(copy.model(**arguments))
    nothing = recipe.override({**COPY, "ratio": {"curve": "constant", "start": 0.0}})
    worst = worst_difference(expected, run_steps(nothing, copy.model, arguments, _STEPS))
    says = "bit for bit the plain model" if worst == 0 else f"differs from the plain model by {worst:.3g}"
    return Check("ratio 0", worst == 0, says)


def _half_merged(recipe: Recipe, copy: SmallCopy, survey: Survey) -> Check:
    """At ratio 0.5 every module that a stage merges must run on about half of its image tokens, and on all else."""
    arguments = copy.arguments(trial_sizes(survey))
    sites = {site.path: site for site in survey.sites}
    merged = [module.path for module in match_sites(copy.model, _named(recipe))]
    changed = recipe.override({**COPY, "ratio": {"curve": "constant", "start": _RATIO}})
    with noted_calls(copy.model, [path for path in merged if path in sites]) as seen:
        outputs = run_steps(changed, copy.model, arguments, _STEPS)
    if not all_finite(outputs):
        return Check("ratio 0.5", False, "the output is not finite; look at the sites that are merged")
    sizes = trial_sizes(survey)
    wrong: list[str] = []
    found: dict[str, None] = {}
    for path, calls in seen.items():
        every = max(1, len(calls) // _STEPS)  # its block may call it for other tokens too
        meant = calls[sites[path].call or 0 :: every]
        lengths = filter(None, (length_of(call, sites[path].input) for call in meant))
        tokens = sites[path].tokens
        image, rest = int(tokens.image * sizes.area), int(tokens.text * sizes.text + tokens.constant)
        kept = sorted({length - rest for length in lengths} - {image})  # some steps are dense
        found[f"{image} -> {', '.join(map(str, kept))}"] = None
        if not kept or any(abs(k - (1 - _RATIO) * image) > _SLACK * image for k in kept):
            wrong.append(f"{path}: {image} image tokens, kept {', '.join(map(str, kept)) or 'all'}")
    if wrong or not seen:
        says = "; ".join(wrong[:3]) or "no merged module was called"
        return Check("ratio 0.5", False, f"about half of the image tokens should be kept: {says}")
    return Check(
        "ratio 0.5", True, f"{len(seen)} modules keep about half of the image tokens: {'; '.join(found)}"
    )


def _named(recipe: Recipe) -> list[Any]:
    used = {name for stage in recipe.stages for name in stage.sites}
    return [site.model_copy(update={"expect": None}) for site in recipe.sites if site.id in used]
