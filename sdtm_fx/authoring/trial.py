"""Trying a draft out: on a smaller copy with random weights, merging nothing and merging half."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import sdtm_fx
from sdtm_fx.errors import InspectionError, SdtmFxError
from sdtm_fx.inspecting.arguments import CallSizes
from sdtm_fx.inspecting.small import SmallCopy, small_copy
from sdtm_fx.inspecting.survey import FoundSite, Survey
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewrite import restore, rewrite, steps
from sdtm_fx.rewriting.rewriting import rewriting_of
from sdtm_fx.sites.matching import match_sites

_STEPS = 8
_RATIO = 0.5
_SLACK = 0.1
_COPY: Mapping[str, Any] = {"sites.*.expect": None, "plan.round_to": 1, "gate": "off"}
"""A copy has other numbers of layers and few tokens."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: What.
        passed: How it went.
        says: What was seen, or what to edit.
    """

    name: str
    passed: bool
    says: str


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
        expected = _tensors(copy.model(**arguments))
    outputs = _run(recipe.override({**_COPY, "ratio": {"curve": "constant", "start": 0.0}}), copy, arguments)
    worst = max(float((a - b).abs().max()) for run in outputs for a, b in zip(expected, run, strict=True))
    says = "bit for bit the plain model" if worst == 0 else f"differs from the plain model by {worst:.3g}"
    return Check("ratio 0", worst == 0, says)


def _half_merged(recipe: Recipe, copy: SmallCopy, survey: Survey) -> Check:
    """At ratio 0.5 every module that a stage merges must run on about half of its image tokens, and on all else."""
    arguments = copy.arguments(trial_sizes(survey))
    sites = {site.path: site for site in survey.sites}
    merged = [module.path for module in match_sites(copy.model, _named(recipe))]
    changed = recipe.override({**_COPY, "ratio": {"curve": "constant", "start": _RATIO}})
    with _lengths({p: sites[p] for p in merged if p in sites}, copy) as seen:
        outputs = _run(changed, copy, arguments)
    if not all(torch.isfinite(t).all() for run in outputs for t in run):
        return Check("ratio 0.5", False, "the output is not finite; look at the sites that are merged")
    sizes = trial_sizes(survey)
    wrong: list[str] = []
    found: dict[str, None] = {}
    for path, lengths in seen.items():
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


def _run(recipe: Recipe, copy: SmallCopy, arguments: dict[str, Any]) -> list[list[torch.Tensor]]:
    """The outputs of a generation, step by step."""
    rewrite(copy.model, recipe)
    outputs = []
    try:
        halves = 2 if recipe.reads_halves else None
        with torch.no_grad(), steps(copy.model, _STEPS, cfg_halves=halves) as clock:
            for _ in range(_STEPS):
                outputs.append(_tensors(copy.model(**arguments)))
                clock.advance()
    except (RuntimeError, TypeError, ValueError) as error:
        raise InspectionError(
            f"the rewritten copy does not run: {type(error).__name__}: {error}; take the site that its place names out "
            "of the stages"
        ) from error
    finally:
        if rewriting_of(copy.model) is not None:
            restore(copy.model)
    return outputs


@contextlib.contextmanager
def _lengths(sites: Mapping[str, FoundSite], copy: SmallCopy) -> Iterator[dict[str, list[int]]]:
    """The lengths of the sequences that modules are given while the block lasts."""
    seen: dict[str, list[int]] = {}

    def noting(path: str, name: int | str) -> Any:
        def note(_: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            value = args[name] if isinstance(name, int) else kwargs[name]
            seen.setdefault(path, []).append(value.shape[1])

        return note

    handles = [
        copy.model.get_submodule(path).register_forward_pre_hook(noting(path, site.input), with_kwargs=True)
        for path, site in sites.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    return [t for item in output for t in _tensors(item)] if isinstance(output, list | tuple) else []
