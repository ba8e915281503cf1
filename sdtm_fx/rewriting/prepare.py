"""Preparing a rewriting: matching, tracing and costs, before the model is touched."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sdtm_fx.capture.arguments import Key, Signature
from sdtm_fx.capture.blocks import OuterCapture, capture_outer
from sdtm_fx.capture.example import ExampleSize, example_call, example_size, text_length
from sdtm_fx.capture.hooked import hooks_bypassed
from sdtm_fx.capture.stand_ins import weights_in_place
from sdtm_fx.clock import Clock
from sdtm_fx.cost.gate import subsets
from sdtm_fx.cost.gate_variants import add_spans_alone, add_variants
from sdtm_fx.cost.model import CostModel, MeasuredBlock, sites_of
from sdtm_fx.cost.profile import DeviceKey, DeviceProfile
from sdtm_fx.cost.profile_cache import load_profiles
from sdtm_fx.errors import NothingMatched, PlanError, SequenceError, SiteError
from sdtm_fx.grids import show_grid
from sdtm_fx.recipe.match import compile_match
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.tokens import FixedGrid
from sdtm_fx.rewriting.guided import check_output
from sdtm_fx.rewriting.layers import layer_rates, levels_of, ruled_blocks, scales_of
from sdtm_fx.rewriting.programs import ProgramCache
from sdtm_fx.rewriting.rewriting import Rewriting
from sdtm_fx.rewriting.spans import Spans, active_span, resolve_spans, uses_spans
from sdtm_fx.rewriting.work import SitePlace
from sdtm_fx.runtime.binding import BlockBinding
from sdtm_fx.runtime.call import Variant
from sdtm_fx.runtime.grid import GridReader, ImageLayout
from sdtm_fx.runtime.runtime import Runtime
from sdtm_fx.runtime.schedules import Schedules
from sdtm_fx.sites.matching import SiteModule, match_sites


def prepare(model: torch.nn.Module, recipe: Recipe, example: Mapping[str, Any] | None) -> Rewriting:
    """Do everything that can fail, without touching the model.

    Args:
        model: The model.
        recipe: The recipe.
        example: Keyword arguments of one call of the model, for recipes without `inputs`.

    Raises:
        NothingMatched: A site of the recipe matches no module.
        SiteError: A site is not what the recipe says.
        CaptureError: The model cannot be traced.
        RewriteError: A method reads what guidance changes, and the model returns nothing that it could be read off.
        CalibrationError: A measurement that the cost gate would go by cannot be read.
    """
    modules = match_sites(model, recipe.sites)
    places = _places(recipe, modules)
    size = example_size(recipe)
    outer = capture_outer(model, places, _example(model, recipe, size, example))
    check_output(recipe, model, outer.graph)
    order = list(dict.fromkeys(call.path for call in outer.calls))
    kept = _kept_blocks(recipe, order)
    layers = layer_rates(recipe, order, kept, levels_of(recipe, places))
    cache = ProgramCache(recipe)
    ids = {path: [recipe.sites[p.site_index].id for p in inside] for path, inside in places.items()}
    spans = resolve_spans(model, recipe, outer.calls, kept, ids, ruled_blocks(recipe, order))
    blocks = _rewrite_blocks(model, recipe, outer, places, spans, order, kept, cache)
    measured_by_size = example is None and not isinstance(recipe.tokens.grid, FixedGrid)
    layout = ImageLayout(size.grid) if measured_by_size else GridReader(recipe.tokens).read(example or {})
    # The gate weighs sites on one grid.
    weighed = recipe.gate == "auto" and not layers.levels
    profiles = load_profiles() if weighed else {}
    cost = CostModel(
        recipe,
        tuple(blocks.values()),
        layout.grid,
        text_length(recipe, outer.arguments),
        bool(profiles),
        layers,
        layout.references,
    )
    for block in cost.blocks if uses_spans(recipe) else ():
        add_spans_alone(recipe, cache, block)
    for block in cost.blocks if profiles else ():
        add_variants(recipe, cache, block)
    # Measured now, while the example calls still fit the weights: `.to(dtype)` or `.to(device)` may follow.
    for block, stage in itertools.product(cost.blocks, range(len(recipe.stages))):
        with hooks_bypassed(block.block), outer.mode, weights_in_place(block.block, block.leaves):
            _measure(recipe, cost, block, stage)
            _measure_subsets(recipe, cost, block, stage, profiles)
    schedules = Schedules(recipe, cost, cache.refreshes, profiles)
    groups = tuple({block.index // recipe.plan.every_layers: None for block in cost.blocks})
    runtime = Runtime(recipe, Clock(), Signature.of(type(model).forward), schedules, groups, layers)
    return Rewriting(
        recipe=recipe,
        runtime=runtime,
        schedules=schedules,
        cache=cache,
        bindings=_bind(runtime, cache, blocks, places, spans),
        kept=tuple(path for path in order if path in kept),
        outer=outer.graph,
    )


def _measure(recipe: Recipe, cost: CostModel, block: MeasuredBlock, stage: int) -> None:
    """Measure a block in a stage; it shows here whether it is on its grid, and runs on fewer tokens in a span."""
    place = active_span(recipe, block.program.spans, Variant(stage=stage))
    try:
        cost.block_cost(block, stage)
        cost.inner_cost(block, stage)
    except PlanError as error:
        level = cost.layers.levels.get(block.index)
        if level is None and isinstance(error, SequenceError):
            raise SiteError(
                f"{block.path} in stage {recipe.stages[stage].name!r}: {error} (a site whose sequence holds more than "
                "the image names the rest with `prefix` or `suffix`)"
            ) from error
        if level is None:
            raise
        own = show_grid(cost.layers.grid(block.index, cost.grid))
        raise SiteError(
            f"{block.path} does not run on a grid of {own} tokens where the recipe's is "
            f"{show_grid(cost.grid)} (downsample {level}): {error}"
        ) from error
    except RuntimeError as error:
        stage_name = recipe.stages[stage].name
        where = f"stage {stage_name!r}" if place is None else f"span {recipe.spans[place.span_index].id!r}"
        raise SiteError(
            f"{where}: {block.path} does not run on fewer image tokens: {error} (where attention is given rotary "
            "tables, name their argument with `rotary`)"
        ) from error


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


def _rewrite_blocks(
    model: torch.nn.Module,
    recipe: Recipe,
    outer: OuterCapture,
    places: dict[str, tuple[SitePlace, ...]],
    spans: Mapping[str, Spans],
    order: list[str],
    kept: set[str],
    cache: ProgramCache,
) -> dict[tuple[str, Key], MeasuredBlock]:
    """The blocks that are rewritten, by path and by structure of their calls."""
    blocks: dict[tuple[str, Key], MeasuredBlock] = {}
    for call in outer.calls:
        if call.path not in kept:
            block = model.get_submodule(call.path)
            program = cache.program(block, call.key, call.leaves, places[call.path], spans.get(call.path, ()))
            index = order.index(call.path)
            blocks[call.path, call.key] = MeasuredBlock(call.path, block, program, call.leaves, index)
    if not blocks:
        raise NothingMatched(
            f"recipe {recipe.name!r}: keep_dense.layers and layers with scale 0 keep every block; "
            "nothing is left to merge"
        )
    return blocks


def _bind(
    runtime: Runtime,
    cache: ProgramCache,
    blocks: Mapping[tuple[str, Key], MeasuredBlock],
    places: dict[str, tuple[SitePlace, ...]],
    spans: Mapping[str, Spans],
) -> dict[str, BlockBinding]:
    bindings: dict[str, BlockBinding] = {}
    for (path, key), block in blocks.items():
        if path not in bindings:
            signature = Signature.of(type(block.block).forward)
            bindings[path] = BlockBinding(
                runtime, cache, path, block.index, signature, places[path], spans.get(path, ())
            )
        bindings[path].programs[key] = block.program
    return bindings


def _kept_blocks(recipe: Recipe, order: list[str]) -> set[str]:
    kept = {path for path, scale in scales_of(recipe, order).items() if scale == 0}
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
