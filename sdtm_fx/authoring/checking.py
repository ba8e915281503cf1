"""Trying a recipe of any origin on the class that it is for: sites, example call, tokens, merging nothing, merging."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sdtm_fx.authoring.placing import find_tokens
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
from sdtm_fx.capture.example import ExampleSize, example_call, example_size
from sdtm_fx.capture.whole_numbers import shapes_alone
from sdtm_fx.errors import InspectionError, RewriteError, SdtmFxError
from sdtm_fx.grids import coarser, tokens_on
from sdtm_fx.inspecting.building import LIMIT, build_on_meta, fill, small_configs
from sdtm_fx.inspecting.opening import Subject
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.tokens import InputSpec
from sdtm_fx.rewriting.span_ends import covering_stages
from sdtm_fx.sites.matching import SiteModule, match_sites

_STEPS = 8
_ROUNDING = 1e-5
"""Of the largest number in the output: what sums in another order may differ by, in single precision."""
_COPY = {**COPY, "keep_dense.layers": [], "layers": []}
"""Rules for single blocks are left out: a copy has other numbers of them."""


@dataclass(frozen=True)
class _Copy:
    """A smaller copy with random weights, and the example call of the recipe on it."""

    model: torch.nn.Module
    arguments: Mapping[str, Any]
    size: ExampleSize
    said: str


def try_recipe(recipe: Recipe, subject: Subject, layers: int = 2) -> list[Check]:
    """Match a recipe with a model, and run it on a smaller copy with random weights.

    The copy is called as `inputs` of the recipe say, at the size that `rewrite` traces with, and over eight steps or as
    many as its first stage and `keep_dense.steps` need. Rules for single blocks, counts of modules and rounding are
    lifted on it.

    Args:
        recipe: The recipe.
        subject: The model.
        layers: Most layers of each kind in the copy.

    Returns:
        The checks, up to the first that failed.
    """
    checks: list[Check] = []
    try:
        checks.append(_matched(recipe, subject))
        copy = _copy(recipe, subject, layers)
        checks.append(Check("call", True, f"`inputs` run on a copy with {copy.said}"))
        behind_dense = (recipe.keep_dense.first_steps + 1) / recipe.stages[
            0
        ].until  # a step of the first stage
        count = max([_STEPS, math.ceil(behind_dense), *(step + 3 for step in recipe.keep_dense.steps)])
        checks.append(find_tokens(recipe, copy.model, copy.arguments, copy.size))
        if checks[-1].passed:
            checks.append(_nothing_merged(recipe, copy, count))
        if checks[-1].passed:
            checks.append(_merged(recipe, copy, count))
    except SdtmFxError as error:
        name = ("sites", "call", "tokens", "ratio 0", "merging")[len(checks)]
        checks.append(Check(name, False, f"{type(error).__name__}: {error}"))
    return checks


def _matched(recipe: Recipe, subject: Subject) -> Check:
    if subject.name not in recipe.model:
        raise RewriteError(
            f"recipe {recipe.name!r} is for {', '.join(recipe.model)}, this model is a {subject.name}"
        )
    modules = match_sites(build_on_meta(subject), recipe.sites)
    counts = Counter(module.spec.id for module in modules)
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    return Check("sites", True, f"{listed} of {subject.name}")


def _copy(recipe: Recipe, subject: Subject, layers: int) -> _Copy:
    size, stopped = example_size(recipe), ""
    for config, said in small_configs(subject, layers):
        model = build_on_meta(subject, config)
        try:
            with torch.no_grad(), shapes_alone():
                model(**example_call(model, recipe, size))
        except RewriteError:
            raise  # the recipe names a size that no config has
        except Exception as error:  # a copy that does not fit together is not the one: the next is tried
            stopped = stopped or f"{type(error).__name__}: {error}".rstrip(".")
            continue
        kind: Any = subject.kind
        built = fill(kind(**config))
        return _Copy(built, _filled(recipe, built, size), size, said)
    if not stopped:
        raise InspectionError(
            f"no copy of {subject.name} with at most {layers} layers of each kind has less than {LIMIT / 1e6:.0f} "
            "million weights, so nothing was run; give a config of a smaller model with --config"
        )
    raise InspectionError(
        f"inputs: the call that they describe does not run on a copy of {subject.name} with at most {layers} layers of "
        f"each kind and {LIMIT / 1e6:.0f} million weights: {stopped}; compare with what "
        f"sdtm-fx inspect {subject.name} shows as its call"
    )


def _filled(recipe: Recipe, model: torch.nn.Module, size: ExampleSize) -> dict[str, Any]:
    """The example call, with seeded noise in what is latent or embedding: equal tokens would hide mistakes."""
    call = example_call(model, recipe, size)
    generator = torch.Generator().manual_seed(0)

    def noise(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(noise, value))
        return torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value)

    for name, spec in recipe.inputs.items():
        *outer, key = name.split(".")
        owner = call
        for part in outer:
            owner = owner.get(part, {})
        if isinstance(spec, InputSpec) and spec.fill is None and len(spec.shape) > 1 and key in owner:
            owner[key] = noise(owner[key])
    return call


def _nothing_merged(recipe: Recipe, copy: _Copy, count: int) -> Check:
    """With ratio 0 every output must be that of the plain model, bit for bit.

    What is forecast, is forecast at any ratio: of a call that does not change, it is the plain model but for rounding.
    """
    with torch.no_grad():
        expected = tensors(copy.model(**copy.arguments))
    zero = {"curve": "constant", "start": 0.0}
    own = {"stages": {stage.name: {"ratio": None} for stage in recipe.stages}}
    outputs = run_steps(recipe.override({**_COPY, **own, "ratio": zero}), copy.model, copy.arguments, count)
    worst = worst_difference(expected, outputs)
    forecast = not all(stage.method.merges for stage in recipe.stages)
    scale = max(float(tensor.abs().max()) for tensor in expected)
    if worst == 0 or (forecast and worst <= _ROUNDING * scale):
        exactly = "bit for bit the plain model"
        return Check(
            "ratio 0", True, exactly if worst == 0 else "the plain model, but for the rounding of forecasts"
        )
    return Check("ratio 0", False, f"differs from the plain model by {worst:.3g}")


def _merged(recipe: Recipe, copy: _Copy, count: int) -> Check:
    """With its own ratios, every module that a stage merges must be given fewer image tokens in some step."""
    changed = recipe.override(_COPY)
    used = {name for stage in recipe.stages for name in stage.sites}
    matched = match_sites(copy.model, changed.sites)
    covered = covering_stages(changed, list(dict.fromkeys(module.block for module in matched)))
    forecast = {stage.name for stage in recipe.stages if not stage.method.merges}
    modules = [m for m in matched if m.spec.id in used or forecast.intersection(covered.get(m.block, ()))]
    paths = [module.path for module in modules]
    with torch.no_grad(), noted_calls(copy.model, paths) as plain:
        copy.model(**copy.arguments)
    with noted_calls(copy.model, paths) as seen:
        outputs = run_steps(changed, copy.model, copy.arguments, count)
    if not all_finite(outputs):
        return Check("merging", False, "the output is not finite; look at the sites that are merged")
    told: dict[str, dict[str, None]] = {}
    for module in modules:
        meant, every = module.spec.call or 0, len(plain[module.path])
        calls = [plain[module.path][meant], *seen.get(module.path, [])[meant::every]]
        whole, *lengths = (length_of(call, module.spec.input) or 0 for call in calls)
        says = _seen(recipe, module, whole, lengths, copy.size, count)
        if says is None:
            return Check(
                "merging", False, f"{module.path} runs on all of its image tokens in each of {count} steps; look at "
                "ratio and keep_dense, and at what else is merged in its block",
            )  # fmt: skip
        told.setdefault(module.spec.id, {})[says] = None
    listed = "; ".join(f"{name} {', '.join(says)}" for name, says in told.items())
    return Check("merging", True, f"image tokens in {count} steps: {listed}")


def _seen(
    recipe: Recipe, module: SiteModule, whole: int, lengths: list[int], size: ExampleSize, count: int
) -> str | None:
    """What a module was given, in words, of so many tokens; None where it was given all in every step."""
    if module.spec.merge == "keys":
        return "all, with fewer keys"
    image = tokens_on(coarser(recipe.tokens.whole(size.grid), module.spec.downsample))
    beside = whole - image  # text in the same sequence
    kept = sorted({length - beside for length in lengths} - {image}, reverse=True)
    if not kept and len(lengths) == count:
        return None
    left_out = [f"none in {count - len(lengths)}"] if len(lengths) < count else []
    return f"{image} -> {', '.join([*map(str, kept), *left_out])}"
