"""The `layers` of a recipe on a model: which rules its blocks take."""

from __future__ import annotations

from collections.abc import Sequence

from sdtm_fx.errors import NothingMatched, SiteError
from sdtm_fx.layer_rates import LayerRates
from sdtm_fx.recipe.layers import LayerRule
from sdtm_fx.recipe.match import compile_match, near_misses
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.reductions import Reduce


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


def layer_rates(recipe: Recipe, order: Sequence[str], kept: set[str]) -> LayerRates:
    """What the rules of a recipe say of its rewritten blocks.

    Args:
        recipe: The recipe.
        order: Paths of the blocks with sites, in the order of execution.
        kept: Those that stay dense.

    Raises:
        NothingMatched: A rule matches no block.
        SiteError: Two rules say the same of a block, or blocks of a plan group remove differently.
    """
    scales = scales_of(recipe, order)
    reduces: dict[int, Reduce] = {
        order.index(path): rule.reduce
        for path, rule in _ruled(recipe, order, "reduce").items()
        if rule.reduce is not None and path not in kept
    }
    _check_groups(recipe, order, kept, scales)
    numbered = {order.index(path): scale for path, scale in scales.items() if path not in kept and scale != 1}
    return LayerRates(numbered, reduces, recipe.plan.round_to)


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
