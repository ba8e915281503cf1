"""Example calls: the arguments of a model's forward, as the recipe's `inputs` describe them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sdtm_fx.errors import RewriteError, nearest
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.tokens import FixedGrid, InputSpec, LatentGrid


@dataclass(frozen=True)
class ExampleSize:
    """The size of an example call.

    Attributes:
        batch: Samples.
        text: Text tokens.
        grid: (height, width) in image tokens.
    """

    batch: int = 2
    text: int = 7
    grid: tuple[int, int] = (8, 6)


def example_size(recipe: Recipe) -> ExampleSize:
    """The size of the call that a model is traced with: small, not square where the model takes that, and with room
    for the recipe's windows."""
    windows = [w for w in (getattr(stage.method, "window", None) for stage in recipe.stages) if w is not None]
    height = max([4, *(2 * w[0] for w in windows)])
    width = max([4, *(2 * w[1] for w in windows)])
    coarsest = max(site.downsample for site in recipe.sites)  # has room for them too
    grid = recipe.tokens.grid
    if isinstance(grid, LatentGrid) and grid.square:
        side = 2 * max(height, width) * coarsest
        return ExampleSize(grid=(side, side))
    return ExampleSize(grid=(2 * height * coarsest, (2 * width - 2) * coarsest))


def example_call(model: torch.nn.Module, recipe: Recipe, size: ExampleSize) -> dict[str, Any]:
    """Build the keyword arguments of one call of a model, on its device and in its dtype.

    Args:
        model: The model; its ``config`` names sizes.
        recipe: Its `inputs` say which arguments there are.
        size: How large.

    Raises:
        RewriteError: The recipe has no `inputs`, or names a size that the model's config lacks.
    """
    if not recipe.inputs:
        raise RewriteError(
            f"recipe {recipe.name!r} has no `inputs`, so {type(model).__name__} cannot be traced before its first "
            "call; add `inputs` to the recipe (name: [dimensions]) or pass `example=` to rewrite"
        )
    tensor = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    # diffusers looks through casting hooks: this is what the model computes in, not what it stores.
    dtype = getattr(model, "dtype", None)
    if isinstance(dtype, torch.dtype) and dtype != tensor.dtype:
        tensor = torch.empty(0, dtype=dtype, device=tensor.device)
    config: Mapping[str, Any] = getattr(model, "config", {})
    call: dict[str, Any] = {}
    for name, spec in recipe.inputs.items():
        if spec.when is not None and not config.get(spec.when):
            continue
        shape = _shape(name, spec, _sizes(recipe, size), config, type(model).__name__)
        *outer, key = name.split(".")
        owner = call
        for argument in outer:
            owner = owner.setdefault(argument, {})
        owner[key] = _fill(spec, shape, size, tensor)
    call = {name: _numbered(name, value) for name, value in call.items()}
    if hasattr(model, "config"):
        call["return_dict"] = False
    return call


def _sizes(recipe: Recipe, size: ExampleSize) -> dict[str, int]:
    layout = recipe.tokens.grid
    patch = (1, 1)
    if isinstance(layout, LatentGrid):
        patch = (layout.patch, layout.patch) if isinstance(layout.patch, int) else layout.patch
    height, width = (layout.height, layout.width) if isinstance(layout, FixedGrid) else size.grid
    return {
        "batch": size.batch,
        "text": size.text,
        "tokens": height * width,
        "height": height * patch[0],
        "width": width * patch[1],
    }


def _shape(
    name: str, spec: InputSpec, sizes: Mapping[str, int], config: Mapping[str, Any], model: str
) -> tuple[int, ...]:
    shape = []
    for dimension in spec.shape:
        size = dimension if isinstance(dimension, int) else sizes.get(dimension, config.get(dimension))
        if not isinstance(size, int):
            known = [*sizes, *(k for k, v in config.items() if isinstance(v, int))]
            raise RewriteError(
                f"inputs.{name}: {dimension!r} is no size; accepted are integers, "
                f"{', '.join(sizes)}, and whole numbers in the config of {model}{nearest(str(dimension), known)}"
            )
        shape.append(size)
    return tuple(shape)


def _numbered(name: str, value: Any) -> Any:
    """The tuple that a mapping from ``0``, ``1`` and so on stands for; everything else as it is."""
    if not isinstance(value, dict) or not any(key.isdecimal() for key in value):
        return value
    places = [str(place) for place in range(len(value))]
    if sorted(value) != sorted(places):
        raise RewriteError(
            f"inputs.{name}: found the places {', '.join(value)}; accepted: {', '.join(places)}, as a tuple has them"
        )
    return tuple(value[place] for place in places)


def _fill(spec: InputSpec, shape: tuple[int, ...], size: ExampleSize, like: torch.Tensor) -> torch.Tensor:
    if spec.fill == "zeros":
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    if spec.fill == "labels":
        return torch.zeros(shape, dtype=torch.int64, device=like.device)
    if spec.fill == "grid_ids":
        ids = torch.zeros(*size.grid, shape[-1], dtype=like.dtype, device=like.device)
        ids[..., -2] += torch.arange(size.grid[0], device=like.device)[:, None]
        ids[..., -1] += torch.arange(size.grid[1], device=like.device)[None, :]
        return ids.reshape(-1, shape[-1])
    # Values do not matter to a trace; a constant keeps example calls free of random numbers.
    return torch.full(shape, 0.5 if spec.fill is None else 1.0, dtype=like.dtype, device=like.device)


def takes_text(recipe: Recipe) -> bool:
    """Whether calls have text of any length; class labels, or text that is always padded to one length, are none."""
    return any("text" in spec.shape for spec in recipe.inputs.values())


def text_length(recipe: Recipe, arguments: Mapping[str, Any]) -> int:
    """The number of text tokens in a call, read off the first input that the recipe says has them; else 0."""
    for name, spec in recipe.inputs.items():
        value = arguments.get(name)
        if "text" in spec.shape and isinstance(value, torch.Tensor):
            return int(value.shape[spec.shape.index("text")])
    return 0
