"""The `layers` of a recipe on a model: which rules its blocks take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sdtm_fx.errors import NothingMatched, SiteError
from sdtm_fx.layer_rates import LayerRates
from sdtm_fx.recipe.layers import LayerRule
from sdtm_fx.recipe.match import compile_match, near_misses
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.reductions import Reduce
from sdtm_fx.rewriting.work import SitePlace


def scales_of(recipe: Recipe, order: Sequence[str]) -> dict[str, float]:
    """The scale of every block that has one, by path.

    Args:
        recipe: The recipe.
        order: Paths of the blocks with sites, in the order of execution.

    Raises:
        NothingMatched: A rule matches no block.
        SiteError: Two rules say what a block removes.
    """
    return {
        path: rule.scale for path, rule in _ruled(recipe, order, "scale").items() if rule.scale is not None
    }


def levels_of(recipe: Recipe, places: Mapping[str, Sequence[SitePlace]]) -> dict[str, int]:
    """Side of a block's tokens over that of the grid's, by path, where it is not 1.

    Args:
        recipe: The recipe.
        places: Sites by path of their block.

    Raises:
        SiteError: The sites of a block disagree.
    """
    levels = {}
    for path, inside in places.items():
        specs = [recipe.sites[place.site_index] for place in inside]
        for spec in specs[1:]:
            if spec.downsample != specs[0].downsample:
                raise SiteError(
                    f"sites {specs[0].id!r} (downsample {specs[0].downsample}) and {spec.id!r} (downsample "
                    f"{spec.downsample}) both lie in {path}; the sites of a block have the same tokens"
                )
        if specs[0].downsample > 1:
            levels[path] = specs[0].downsample
    return levels


def layer_rates(
    recipe: Recipe, order: Sequence[str], kept: set[str], levels: Mapping[str, int] | None = None
) -> LayerRates:
    """What the rules of a recipe, and its sites, say of its rewritten blocks.

    Args:
        recipe: The recipe.
        order: Paths of the blocks with sites, in the order of execution.
        kept: Those that stay dense.
        levels: From `levels_of`.

    Raises:
        NothingMatched: A rule matches no block.
        SiteError: Two rules say the same of a block, or blocks of a plan group remove differently.
    """
    levels = levels or {}
    scales = scales_of(recipe, order)
    reduces: dict[int, Reduce] = {
        order.index(path): rule.reduce
        for path, rule in _ruled(recipe, order, "reduce").items()
        if rule.reduce is not None and path not in kept
    }
    _check_groups(recipe, order, kept, scales)
    _check_levels(recipe, order, kept, levels)
    numbered = {order.index(path): scale for path, scale in scales.items() if path not in kept and scale != 1}
    coarse = {order.index(path): level for path, level in levels.items()}
    return LayerRates(numbered, reduces, recipe.plan.round_to, coarse)


def ruled_blocks(recipe: Recipe, order: Sequence[str]) -> set[str]:
    """Paths of the blocks that some rule is about; arguments and errors as for `layer_rates`."""
    return {path for key in ("scale", "reduce") for path in _ruled(recipe, order, key)}


def _ruled(recipe: Recipe, order: Sequence[str], key: str) -> dict[str, LayerRule]:
    """The rule that sets a key, by path of the blocks that it matches."""
    ruled: dict[str, tuple[int, LayerRule]] = {}
    for index, rule in enumerate(recipe.layers):
        accepts = compile_match(rule.match)
        hits = [path for path in order if accepts(path)]
        if not hits:
            near = ", ".join(near_misses(rule.match, order)) or order[0]
            raise NothingMatched(
                f"recipe {recipe.name!r}: layers[{index}]: {rule.match!r} matches no block; near misses: {near}"
            )
        if getattr(rule, key) is None:
            continue
        for path in hits:
            if path in ruled:
                raise SiteError(
                    f"recipe {recipe.name!r}: layers[{ruled[path][0]}] and layers[{index}] both say the {key} of "
                    f"{path}; accepted: one rule for each block"
                )
            ruled[path] = (index, rule)
    return {path: rule for path, (_, rule) in ruled.items()}


def _check_groups(recipe: Recipe, order: Sequence[str], kept: set[str], scales: dict[str, float]) -> None:
    """Refuse a plan group whose blocks remove differently: they could not share its plan."""
    size = recipe.plan.every_layers
    for start in range(0, len(order), size):
        group = [path for path in order[start : start + size] if path not in kept]
        for path in group[1:]:
            first, own = scales.get(group[0], 1.0), scales.get(path, 1.0)
            if first != own:
                raise SiteError(
                    f"recipe {recipe.name!r}: {group[0]} (scale {first:g}) and {path} (scale {own:g}) would share a "
                    f"plan; accepted: equal scales within every {size} blocks (plan.every_layers), or no sharing"
                )


def _check_levels(recipe: Recipe, order: Sequence[str], kept: set[str], levels: Mapping[str, int]) -> None:
    """Refuse a plan group, or one counter of ages, for blocks on different grids."""
    everywhere = recipe.plan.ages == "call"
    size = len(order) if everywhere else recipe.plan.every_layers
    for start in range(0, len(order), size):
        group = [path for path in order[start : start + size] if path not in kept]
        for path in group[1:]:
            first, own = levels.get(group[0], 1), levels.get(path, 1)
            if first != own:
                what = "ages (plan.ages: call)" if everywhere else "a plan (plan.every_layers)"
                raise SiteError(
                    f"recipe {recipe.name!r}: {group[0]} (downsample {first}) and {path} (downsample {own}) would "
                    f"share {what}; accepted: only blocks whose tokens are on one grid"
                )
