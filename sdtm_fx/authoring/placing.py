"""Whether the image tokens are where a recipe says: lengths of sequences in a call of the plain model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sdtm_fx.authoring.running import Check, length_of, noted_calls
from sdtm_fx.capture.example import ExampleSize
from sdtm_fx.grids import coarser, show_grid, tokens_on
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.sites.matching import SiteModule, match_sites


def find_tokens(
    recipe: Recipe, model: torch.nn.Module, arguments: Mapping[str, Any], size: ExampleSize
) -> Check:
    """Compare what every site is given with the grid that the recipe reads.

    Args:
        recipe: The recipe.
        model: The plain model.
        arguments: Of a call.
        size: Of that call.

    Returns:
        The lengths; or of the first site that is given something else, what is missing in the recipe.
    """
    merged = {name for stage in recipe.stages for name in stage.sites}
    modules = match_sites(model, recipe.override({"sites.*.expect": None}).sites)
    paths = dict.fromkeys(path for m in modules for path in (m.path, m.block))
    with torch.no_grad(), noted_calls(model, paths) as seen:
        model(**arguments)
    told: dict[str, str] = {}
    for module in modules:
        grid = coarser(recipe.tokens.whole(size.grid), module.spec.downsample)
        calls = seen.get(module.path, [])
        if not calls:
            return Check("tokens", False, f"{module.path} is not called; take it out of the sites")
        call = calls[min(module.spec.call or 0, len(calls) - 1)]
        length, image = length_of(call, module.spec.input), tokens_on(grid)
        problem = _problem(module, call, seen.get(module.block, [{}])[0], length, image)
        if problem is None and module.spec.id in merged:
            problem = _tables(module, call, (image, image + size.text))
        if problem is not None:
            return Check("tokens", False, f"{problem} (a grid of {show_grid(grid)} tokens)")
        told[module.spec.id] = f"{module.spec.id} {tokens_on(grid)} of {length}"
    return Check("tokens", True, f"image among all: {', '.join(told.values())}")


def _problem(
    module: SiteModule,
    call: Mapping[str, Any],
    block: Mapping[str, Any],
    length: int | None,
    image: int,
) -> str | None:
    """What is wrong with a site, and the key to look at; None where nothing is."""
    spec = module.spec
    where = f"site {spec.id!r}: {module.path}"
    if length is None:
        return f"{where} is given no sequence as {spec.input!r}; its arguments are {', '.join(call)}: look at `input`"
    if length < image:
        return f"{where} is given {length} tokens, fewer than the {image} of the image: look at tokens.grid"
    beside = spec.prefix or spec.suffix
    if length == image and beside is not None and _length(block.get(beside)):
        return f"{where} is given the {image} tokens of the image alone: take out {beside!r}, which is not among them"
    if length == image or beside == "*":
        return None
    fitting = [name for name, value in block.items() if _length(value) == length - image]
    if beside is None:
        given = f"{where} is given {length} tokens, {image} of them of the image"
        if not fitting:
            return (
                f"{given}, and {module.block} nothing as long as the other {length - image}: look at tokens.grid, or "
                'write `prefix: "*"` where they stand in front, `suffix: "*"` where they stand behind'
            )
        return (
            f"{given}: name the argument of {module.block} with the other {length - image} ({', '.join(fitting)}) as "
            "`prefix` where they stand in front, as `suffix` behind"
        )
    return None


def _tables(module: SiteModule, call: Mapping[str, Any], lengths: tuple[int, ...]) -> str | None:
    """Tables of positions that a merged module is given and that no key names; None where there are none."""
    if module.spec.rotary is not None or module.spec.merge == "keys":
        return None
    pairs = {
        name: value for name, value in call.items() if isinstance(value, list | tuple) and len(value) == 2
    }
    tables = [
        name
        for name, pair in pairs.items()
        if all(isinstance(t, torch.Tensor) and not {*t.shape}.isdisjoint(lengths) for t in pair)
    ]
    if not tables:
        return None
    return (
        f"site {module.spec.id!r}: {module.path} is also given {tables[0]}, two tables with a row for each token: name "
        "it as `rotary`, so that they follow the tokens"
    )


def _length(value: Any) -> int | None:
    return value.shape[1] if isinstance(value, torch.Tensor) and value.ndim > 1 else None
