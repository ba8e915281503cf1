"""`rewrite`, `restore`, `rewritten` and `steps`: the verbs of the package."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from sdtm_fx.capture.arguments import Signature
from sdtm_fx.capture.blocks import OuterCapture, capture_outer
from sdtm_fx.capture.example import ExampleSize, example_call, example_size, text_length
from sdtm_fx.capture.hooked import hooks_bypassed
from sdtm_fx.capture.stand_ins import weights_in_place
from sdtm_fx.clock import Clock
from sdtm_fx.clock_sources import ManualSteps
from sdtm_fx.cost.gate import subsets
from sdtm_fx.cost.gating import add_variants
from sdtm_fx.cost.model import CostModel, MeasuredBlock, sites_of
from sdtm_fx.cost.profile import DeviceKey, DeviceProfile
from sdtm_fx.cost.profile_cache import load_profiles
from sdtm_fx.errors import NothingMatched, RewriteError
from sdtm_fx.recipe.load import load_recipe
from sdtm_fx.recipe.match import compile_match
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.tokens import FixedGrid
from sdtm_fx.rewriting.programs import ProgramCache
from sdtm_fx.rewriting.rewriting import Rewriting, rewriting_of
from sdtm_fx.rewriting.work import SitePlace
from sdtm_fx.runtime.binding import BlockBinding
from sdtm_fx.runtime.runtime import Runtime
from sdtm_fx.sites.matching import SiteModule, match_sites

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
        RewriteError: The recipe is not for this model, or the model is compiled already.
        NothingMatched: A site of the recipe matches no module.
        SiteError: A site is not what the recipe says.
        CaptureError: The model cannot be traced.
        CalibrationError: A measurement that the cost gate would go by cannot be read.
    """
    parsed = load_recipe(recipe)
    models = _denoisers(target, parsed)
    plans = [(model, _prepare(model, parsed, target, example)) for model in models]
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


def _prepare(
    model: torch.nn.Module, recipe: Recipe, target: Any, example: Mapping[str, Any] | None
) -> Rewriting:
    """Do everything that can fail, without touching the model."""
    modules = match_sites(model, recipe.sites)
    places = _places(recipe, modules)
    size = example_size(recipe)
    outer = capture_outer(model, places, _example(model, recipe, size, example))
    order = list(dict.fromkeys(call.path for call in outer.calls))
    kept = _kept_blocks(recipe, order)
    cache = ProgramCache(recipe)
    runtime = Runtime(recipe, Clock(), Signature.of(type(model).forward))
    bindings, blocks = _bind(model, recipe, outer, places, order, kept, cache, runtime)
    measured_by_size = example is None and not isinstance(recipe.tokens.grid, FixedGrid)
    grid = size.grid if measured_by_size else runtime.grid.read(example or {})
    profiles = load_profiles() if recipe.gate == "auto" else {}
    text = text_length(recipe, outer.arguments)
    cost = CostModel(recipe, blocks, grid, text, with_extra=bool(profiles))
    for block in blocks if profiles else ():
        add_variants(recipe, cache, block)
    # Measured now, while the example calls still fit the weights: `.to(dtype)` or `.to(device)` may follow.
    for block, stage in itertools.product(blocks, range(len(recipe.stages))):
        with hooks_bypassed(block.block), outer.mode, weights_in_place(block.block, block.leaves):
            cost.block_cost(block, stage)
            _measure_subsets(recipe, cost, block, stage, profiles)
    runtime.cost = cost
    runtime.profiles = profiles
    runtime.refreshes = cache.refreshes
    runtime.groups = tuple({b.index // recipe.plan.every_layers: None for b in bindings.values()})
    return Rewriting(recipe, runtime, cache, bindings, tuple(p for p in order if p in kept), outer.graph)


def _measure_subsets(
    recipe: Recipe,
    cost: CostModel,
    block: MeasuredBlock,
    stage: int,
    profiles: Mapping[DeviceKey, DeviceProfile],
) -> None:
    """Measure a block with every set of sites that the cost gate may leave out, where it has rates to go by."""
    if not profiles:
        return
    sites = sites_of(recipe, stage, block)
    for kept in subsets(sorted(sites)):
        cost.block_cost(block, stage, sites - kept)


def _places(recipe: Recipe, modules: tuple[SiteModule, ...]) -> dict[str, tuple[SitePlace, ...]]:
    index = {spec.id: i for i, spec in enumerate(recipe.sites)}
    places: dict[str, tuple[SitePlace, ...]] = {}
    for module in modules:
        place = SitePlace(index[module.spec.id], module.local, module.path)
        places[module.block] = (*places.get(module.block, ()), place)
    return places


def _example(
    model: torch.nn.Module, recipe: Recipe, size: ExampleSize, given: Mapping[str, Any] | None
) -> Callable[[], Mapping[str, Any]]:
    if given is None:
        return lambda: example_call(model, recipe, size)
    return lambda: torch.utils._pytree.tree_map_only(torch.Tensor, torch.empty_like, dict(given))


def _bind(
    model: torch.nn.Module,
    recipe: Recipe,
    outer: OuterCapture,
    places: dict[str, tuple[SitePlace, ...]],
    order: list[str],
    kept: set[str],
    cache: ProgramCache,
    runtime: Runtime,
) -> tuple[dict[str, BlockBinding], tuple[MeasuredBlock, ...]]:
    bindings: dict[str, BlockBinding] = {}
    blocks: list[MeasuredBlock] = []
    for call in outer.calls:
        if call.path in kept:
            continue
        block = model.get_submodule(call.path)
        if call.path not in bindings:
            bindings[call.path] = BlockBinding(
                runtime,
                cache,
                call.path,
                order.index(call.path),
                Signature.of(type(block).forward),
                places[call.path],
            )
        program = cache.program(block, call.key, call.leaves, places[call.path])
        bindings[call.path].programs[call.key] = program
        blocks.append(MeasuredBlock(call.path, block, program, call.leaves, order.index(call.path)))
    if not bindings:
        raise NothingMatched(
            f"recipe {recipe.name!r}: keep_dense.layers keeps every block; nothing is left to merge"
        )
    return bindings, tuple(blocks)


def _kept_blocks(recipe: Recipe, order: list[str]) -> set[str]:
    kept: set[str] = set()
    for layer in recipe.keep_dense.layers:
        if isinstance(layer, int):
            if not -len(order) <= layer < len(order):
                raise NothingMatched(
                    f"recipe {recipe.name!r}: keep_dense.layers: there is no block {layer}; the model has {len(order)}"
                )
            kept.add(order[layer])
            continue
        accepts = compile_match(layer)
        hits = [path for path in order if accepts(path)]
        if not hits:
            raise NothingMatched(
                f"recipe {recipe.name!r}: keep_dense.layers: {layer!r} matches no block; the first is {order[0]}"
            )
        kept.update(hits)
    return kept
