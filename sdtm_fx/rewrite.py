"""`rewrite`, `restore`, `rewritten` and `steps`: the verbs of the package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from sdtm_fx.clock_sources import ManualSteps
from sdtm_fx.errors import RewriteError
from sdtm_fx.recipe.load import load_recipe
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.guided import check_pipeline
from sdtm_fx.rewriting.prepare import prepare
from sdtm_fx.rewriting.rewriting import Rewriting, rewriting_of

Target = TypeVar("Target")
RecipeSource = Recipe | str | Path | Mapping[str, Any]


def rewrite(target: Target, recipe: RecipeSource, *, example: Mapping[str, Any] | None = None) -> Target:
    """Rewrite a model, or the denoiser of a pipeline, in place: its blocks merge tokens as the recipe says.

    The model keeps its class, config, weights and ``state_dict`` keys. A second call replaces the first;
    `restore` takes it back. Nothing is computed and no weight is touched: tracing runs on fake tensors.

    Args:
        target: A diffusers pipeline (its scheduler then tells the step exactly), or a model.
        recipe: A recipe, the name of a shipped one, a path, or a mapping.
        example: Keyword arguments of one call of the model, for recipes without `inputs`.

    Returns:
        `target` itself.

    Raises:
        RecipeError: The recipe is not valid.
        RewriteError: The recipe is not for this model, the model is compiled already, or a method compares guidance
            halves that the target never stacks.
        NothingMatched: A site of the recipe matches no module.
        SiteError: A site is not what the recipe says.
        CaptureError: The model cannot be traced.
        CalibrationError: A measurement that the cost gate would go by cannot be read.
    """
    parsed = load_recipe(recipe)
    models = _denoisers(target, parsed)
    check_pipeline(parsed, target)
    plans = [(model, prepare(model, parsed, example)) for model in models]
    replaced = [rewriting for model in models if (rewriting := rewriting_of(model)) is not None]
    with contextlib.ExitStack() as undo:
        for model, rewriting in plans:
            _put_in_place(model, rewriting, target, undo)
        undo.pop_all()
    for previous in replaced:
        previous.runtime.clock.unfollow()
    return target


def restore(target: Target) -> Target:
    """Take a rewriting back: every block runs its own forward again, bit for bit.

    Args:
        target: What was given to `rewrite`, or the model inside.

    Raises:
        RewriteError: Nothing is rewritten there.
    """
    for model in rewritten_models(target):
        rewriting = rewriting_of(model)
        assert rewriting is not None
        rewriting.uninstall(model)
        rewriting.runtime.clock.unfollow()
    return target


@contextlib.contextmanager
def rewritten(
    target: Target, recipe: RecipeSource, *, example: Mapping[str, Any] | None = None
) -> Iterator[Target]:
    """Rewrite for the length of a ``with`` block; see `rewrite`."""
    rewrite(target, recipe, example=example)
    try:
        yield target
    finally:
        restore(target)


@contextlib.contextmanager
def steps(target: Any, count: int, *, cfg_halves: int | None = None) -> Iterator[ManualSteps]:
    """Tell a rewritten model which denoising step it is, in a loop of your own.

    Args:
        target: The rewritten model, or its pipeline.
        count: Number of denoising steps.
        cfg_halves: How many guidance halves are stacked in each batch, for recipes that share plans over
            them; by default every sample has its own plan.

    Yields:
        The clock: ``clock.advance()`` ends a step, ``clock.step = i`` sets it.

    Raises:
        RewriteError: Nothing is rewritten there.
        ClockError: `count` is not positive, or a block of this kind is open already.
    """
    models = rewritten_models(target)
    if len(models) != 1:
        raise RewriteError(
            f"{type(target).__name__} holds {len(models)} rewritten models; name the one to step"
        )
    runtime = rewriting_of(models[0]).runtime  # type: ignore[union-attr]
    with runtime.clock.manual(count) as clock:
        runtime.manual_halves = cfg_halves
        try:
            yield clock
        finally:
            runtime.manual_halves = None


def _put_in_place(
    model: torch.nn.Module, rewriting: Rewriting, target: Any, undo: contextlib.ExitStack
) -> None:
    """Install a rewriting in place of the previous one; `undo` gives that one back if a later step fails."""
    if target is not model:
        rewriting.runtime.clock.follow(target)
        undo.callback(rewriting.runtime.clock.unfollow)
    previous = rewriting_of(model)
    if previous is not None:
        previous.uninstall(model)
        undo.callback(previous.install, model)
    rewriting.install(model)
    undo.callback(rewriting.uninstall, model)


def _denoisers(target: Any, recipe: Recipe) -> list[torch.nn.Module]:
    """The modules that a recipe is for: the target, or the components of a pipeline."""
    if isinstance(target, torch.nn.Module):
        _check_not_compiled(target)
        if not _is_for(recipe, target):
            raise RewriteError(
                f"recipe {recipe.name!r} is for {', '.join(recipe.model)}, this model is a {type(target).__name__}"
            )
        return [target]
    components = getattr(target, "components", None)
    if not isinstance(components, dict):
        raise RewriteError(
            f"cannot rewrite a {type(target).__name__}; give a torch.nn.Module or a diffusers pipeline"
        )
    modules = {k: v for k, v in components.items() if isinstance(v, torch.nn.Module)}
    found = [m for m in modules.values() if _is_for(recipe, getattr(m, "_orig_mod", m))]
    if not found:
        listed = ", ".join(f"{k}: {type(v).__name__}" for k, v in modules.items())
        raise RewriteError(
            f"recipe {recipe.name!r} is for {', '.join(recipe.model)}, and {type(target).__name__} has none ({listed})"
        )
    for model in found:
        _check_not_compiled(model)
    return found


def _check_not_compiled(model: torch.nn.Module) -> None:
    """Refuse what `torch.compile`, ``Module.compile`` or `compile_repeated_blocks` was applied to."""
    if hasattr(model, "_orig_mod") or any(m._compiled_call_impl is not None for m in model.modules()):
        raise RewriteError("the model is compiled already; rewrite it first, then compile")


def _is_for(recipe: Recipe, model: torch.nn.Module) -> bool:
    return any(kind.__name__ in recipe.model for kind in type(model).__mro__)


def rewritten_models(target: Any) -> list[torch.nn.Module]:
    """The rewritten models in a target: itself, or components of a pipeline.

    Raises:
        RewriteError: There is none.
    """
    components = getattr(target, "components", {})
    candidates = [target] if isinstance(target, torch.nn.Module) else list(components.values())
    models = [m for m in candidates if isinstance(m, torch.nn.Module) and rewriting_of(m) is not None]
    if not models:
        raise RewriteError(
            f"{type(target).__name__} is not rewritten; call sdtm_fx.rewrite(it, recipe) first"
        )
    return models
