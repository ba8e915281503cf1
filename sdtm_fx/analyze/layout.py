"""Which recipe describes a model, which of its blocks are looked at, and where their image tokens are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sdtm_fx.capture.arguments import Signature
from sdtm_fx.errors import NothingMatched, SdtmFxError
from sdtm_fx.recipe.load import RecipeLike, list_recipes, load_recipe
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.sections import REST
from sdtm_fx.recipe.tokens import LatentGrid
from sdtm_fx.rewriting.rewriting import rewriting_of
from sdtm_fx.sites.matching import SiteModule, match_sites


@dataclass(frozen=True)
class Block:
    """One block of a model.

    Attributes:
        path: Module path.
        module: The block.
        signature: Parameters of its forward.
        prefixes: Arguments whose length counts leading tokens that are not image, as its sites name them.
    """

    path: str
    module: nn.Module
    signature: Signature
    prefixes: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """A model, and how a recipe reads its tokens.

    Attributes:
        model: The denoiser.
        recipe: Gives token layout and sites; its stages and ratios are not used.
        blocks: Blocks with at least one site, in the order of the model.
    """

    model: nn.Module
    recipe: Recipe
    blocks: tuple[Block, ...]


def find_layout(target: Any, recipe: RecipeLike | None = None) -> Layout:
    """Find the denoiser of a pipeline and a recipe that knows its tokens.

    Args:
        target: A diffusers pipeline, or a model.
        recipe: Names the layout; how many modules its sites expect is not held against the model. By default
            the shipped recipe for the class of the model whose sites match the most modules; of equals one
            that expects as many as there are, and of those the first that is not under `paper/`.

    Raises:
        SdtmFxError: No recipe is for a model of this class, or the model is rewritten.
        NothingMatched: A site of the recipe matches no module.
        RecipeError: The recipe is not valid.
    """
    modules = _modules(target)
    if recipe is None:
        model, parsed = _best(modules, target)
    else:
        parsed = load_recipe(recipe)
        model = _denoiser(modules, parsed, target)
    if rewriting_of(model) is not None:
        raise SdtmFxError(
            f"analyze: {type(model).__name__} is rewritten, so merged tokens would be compared with their own "
            "copies; call sdtm_fx.restore first"
        )
    _check_sequences(parsed)
    return Layout(model, parsed, _blocks(model, match_sites(model, _any_depth(parsed).sites)))


def _check_sequences(recipe: Recipe) -> None:
    """Refuse layouts in which the image is no plane, or stands in front of something else."""
    tokens = recipe.tokens
    if (
        tokens.has_frames
        or tokens.has_references
        or any(site.suffix or site.prefix == REST for site in recipe.sites)
    ):
        raise SdtmFxError(
            f"analyze: recipe {recipe.name!r} describes frames, references, or sequences in which the image does not "
            "come last; accepted: image tokens on a grid of (height, width), alone or behind a `prefix`"
        )


def pixels_per_token(target: Any, recipe: Recipe) -> tuple[int, int] | None:
    """Height and width of a token in pixels, where the recipe's layout tells; None where only a call does."""
    grid = recipe.tokens.grid
    if not isinstance(grid, LatentGrid):
        return None
    patch = grid.patches
    scale = int(getattr(target, "vae_scale_factor", 1))
    return scale * patch[0], scale * patch[1]


def image_tokens(
    block: Block, values: Iterable[Any], arguments: Mapping[str, Any], grid: tuple[int, int]
) -> Tensor:
    """Pick the image tokens out of what a block was given or returned.

    They are the one [batch, tokens, width] tensor with as many tokens as the grid; or, where a site of the
    block has a `prefix`, the one with that many tokens more, of which the leading ones are dropped.

    Args:
        block: The block.
        values: Its arguments or its outputs.
        arguments: Arguments of the block's call, by name.
        grid: (height, width).

    Returns:
        [B, N, D], N = height * width.

    Raises:
        SdtmFxError: No tensor has that length, or more than one has.
    """
    count = grid[0] * grid[1]
    sequences = [v for v in values if isinstance(v, Tensor) and v.ndim == 3]
    found = [v for v in sequences if v.shape[1] == count]
    if not found:
        lead = {arguments[p].shape[1] for p in block.prefixes if isinstance(arguments.get(p), Tensor)}
        found = [v[:, -count:] for v in sequences if v.shape[1] - count in lead]
    if len(found) != 1:
        shapes = ", ".join(str(list(v.shape)) for v in sequences) or "no such tensor"
        hint = "; text and image have equally many tokens: choose another size" if len(found) > 1 else ""
        raise SdtmFxError(
            f"analyze: block {block.path} takes or returns {shapes}; accepted is exactly one tensor "
            f"[batch, {count}, width], for a grid of {grid[0]} x {grid[1]} tokens{hint}"
        )
    return found[0]


def _modules(target: Any) -> dict[str, nn.Module]:
    if isinstance(target, nn.Module):
        return {"model": target}
    components = getattr(target, "components", None)
    if not isinstance(components, dict):
        raise SdtmFxError(
            f"analyze: found a {type(target).__name__}; accepted: a diffusers pipeline or a torch.nn.Module"
        )
    return {name: value for name, value in components.items() if isinstance(value, nn.Module)}


def _is_for(recipe: Recipe, model: nn.Module) -> bool:
    return any(kind.__name__ in recipe.model for kind in type(model).__mro__)


def _listed(modules: Mapping[str, nn.Module]) -> str:
    return ", ".join(f"{name}: {type(m).__name__}" for name, m in modules.items()) or "no modules"


def _denoiser(modules: Mapping[str, nn.Module], recipe: Recipe, target: Any) -> nn.Module:
    for model in modules.values():
        if _is_for(recipe, model):
            return model
    raise SdtmFxError(
        f"analyze: recipe {recipe.name!r} is for {', '.join(recipe.model)}, and {type(target).__name__} has none "
        f"({_listed(modules)})"
    )


def _best(modules: Mapping[str, nn.Module], target: Any) -> tuple[nn.Module, Recipe]:
    best: tuple[tuple[int, bool], nn.Module, Recipe] | None = None
    # Recipes in folders follow publications, with the sites of those outside.
    named = [load_recipe(name) for name in list_recipes() if "/" not in name]
    for recipe in named:
        for model in modules.values():
            if not _is_for(recipe, model):
                continue
            matched = _matched(model, _any_depth(recipe))
            if not matched:
                continue
            rank = (matched, matched == _matched(model, recipe))
            if best is None or rank > best[0]:
                best = rank, model, recipe
    if best is None:
        known = sorted({kind for recipe in named for kind in recipe.model})
        raise SdtmFxError(
            f"analyze: no shipped recipe matches {type(target).__name__} ({_listed(modules)}); there are recipes "
            f"for {', '.join(known)}; write one for this model and name it with `recipe`"
        )
    return best[1], best[2]


def _matched(model: nn.Module, recipe: Recipe) -> int:
    """Number of modules that the sites of a recipe match; 0 where one matches none, or not as many as due."""
    try:
        return len(match_sites(model, recipe.sites))
    except NothingMatched:
        return 0


def _any_depth(recipe: Recipe) -> Recipe:
    return recipe.override({"sites.*.expect": None})


def _blocks(model: nn.Module, sites: tuple[SiteModule, ...]) -> tuple[Block, ...]:
    prefixes: dict[str, dict[str, None]] = {}
    for site in sites:
        named = prefixes.setdefault(site.block, {})
        if site.spec.prefix is not None:
            named[site.spec.prefix] = None
    blocks = []
    for path, module in model.named_modules():
        if path in prefixes:
            signature = Signature.of(type(module).forward)
            blocks.append(Block(path, module, signature, tuple(prefixes[path])))
    return tuple(blocks)
