"""Example calls: the arguments of a model's forward, as the recipe's `inputs` describe them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from packaging.version import Version

from sdtm_fx.capture.whole_numbers import whole_ones
from sdtm_fx.errors import RewriteError, nearest
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.recipe.tokens import (
    AnyInput,
    FixedGrid,
    IdsGrid,
    InputSpec,
    LatentGrid,
    NumberInput,
    ShapesInput,
)


@dataclass(frozen=True)
class ExampleSize:
    """The size of an example call.

    Attributes:
        batch: Samples.
        text: Text tokens.
        grid: Sides of the grid of the tokens that may be merged: height and width, behind the frames where there are
            some. Protected frames come on top.
        references: Tokens of reference images.
    """

    batch: int = 2
    text: int = 7
    grid: TokenGrid = (8, 6)
    references: int = 0


def example_size(recipe: Recipe) -> ExampleSize:
    """The size of the call that a model is traced with: small, not square where the model takes that, and with room
    for the recipe's windows."""
    windows = [w for w in (getattr(stage.method, "window", None) for stage in recipe.stages) if w is not None]
    height = max([4, *(2 * w[-2] for w in windows)])
    width = max([4, *(2 * w[-1] for w in windows)])
    coarsest = max(site.downsample for site in recipe.sites)  # has room for them too
    sides = (2 * height * coarsest, (2 * width - 2) * coarsest)
    if isinstance(recipe.tokens.grid, LatentGrid) and recipe.tokens.grid.square:
        sides = (2 * max(height, width) * coarsest,) * 2
    if not recipe.tokens.has_frames:
        return ExampleSize(grid=sides)
    frames = max([1, *(w[0] for w in windows if len(w) == 3)])
    # More frames than windows need, so that a frame is no constant; and not as many as a side has tokens.
    return ExampleSize(grid=(2 * frames + 1, *sides))


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
    sizes = _Sizes(_named(recipe, size), config, type(model).__name__)
    call: dict[str, Any] = {}
    for name, spec in recipe.inputs.items():
        if not isinstance(spec, ShapesInput) and not _is_passed(spec, config):
            continue
        *outer, key = name.split(".")
        owner = call
        for argument in outer:
            owner = owner.setdefault(argument, {})
        owner[key] = _value(recipe, name, spec, sizes, size, tensor)
    if hasattr(model, "config"):
        call["return_dict"] = False
    return call


def _is_passed(spec: InputSpec | NumberInput, config: Mapping[str, Any]) -> bool:
    """Whether this model takes an argument, in this version of diffusers."""
    if spec.before is not None and Version(diffusers.__version__) >= Version(spec.before):
        return False
    return spec.when is None or bool(config.get(spec.when))


def _named(recipe: Recipe, size: ExampleSize) -> dict[str, int]:
    """The sizes that shapes name."""
    tokens = recipe.tokens
    layout = tokens.grid
    grid = layout.grid if isinstance(layout, FixedGrid) else tokens.whole(size.grid)
    patches = layout.patches if isinstance(layout, LatentGrid) else (1,) * len(grid)
    sides = dict(zip(("width", "height", "frames"), reversed(grid), strict=False))
    edges = dict(zip(("width", "height", "frames"), reversed(patches), strict=False))
    return {
        "batch": size.batch,
        "text": size.text,
        "tokens": tokens_on(grid) + size.references,
        **{name: side * edges[name] for name, side in reversed(sides.items())},
    }


@dataclass(frozen=True)
class _Sizes:
    """What a dimension may be called, and in which model."""

    named: Mapping[str, int]
    config: Mapping[str, Any]
    model: str

    def of(self, name: str, dimension: int | str) -> int:
        """The size that a dimension of input `name` stands for."""
        size = (
            dimension if isinstance(dimension, int) else self.named.get(dimension, self.config.get(dimension))
        )
        if isinstance(size, int):
            return size
        known = [*self.named, *(k for k, v in self.config.items() if isinstance(v, int))]
        raise RewriteError(
            f"inputs.{name}: {dimension!r} is no size; accepted are integers, "
            f"{', '.join(self.named)}, and whole numbers in the config of {self.model}{nearest(str(dimension), known)}"
        )


def _value(
    recipe: Recipe, name: str, spec: AnyInput, sizes: _Sizes, size: ExampleSize, like: torch.Tensor
) -> Any:
    if isinstance(spec, ShapesInput):
        image = recipe.tokens.whole(size.grid)
        others = [(1, *_rectangle(size.references))] if size.references else []
        return [[image, *others] for _ in range(size.batch)]
    count = 1 if spec.copies is None else sizes.of(name, spec.copies)
    values: list[Any]
    if isinstance(spec, NumberInput):
        values = [sizes.of(name, spec.number)] * count
    else:
        shape = tuple(sizes.of(name, dimension) for dimension in spec.shape)
        values = [_fill(recipe, spec, shape, size, like) for _ in range(count)]
    if spec.copies is None:
        return values[0]
    return values if spec.copies == "batch" else tuple(values)


def _rectangle(tokens: int) -> tuple[int, int]:
    """The sides of so many tokens that are nearest to a square: tables of positions have an end."""
    height = next(side for side in range(math.isqrt(tokens), 0, -1) if tokens % side == 0)
    return height, tokens // height


def _fill(
    recipe: Recipe, spec: InputSpec, shape: tuple[int, ...], size: ExampleSize, like: torch.Tensor
) -> torch.Tensor:
    if spec.read:
        return whole_ones(shape, like.device)
    if spec.fill == "zeros":
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    if spec.fill == "labels":
        return torch.zeros(shape, dtype=torch.int64, device=like.device)
    if spec.fill == "grid_ids":
        ids = _grid_ids(recipe, shape[-1], size).to(like)
        return ids.expand(*shape[:-2], -1, -1)
    # Values do not matter to a trace; a constant keeps example calls free of random numbers.
    return torch.full(shape, 0.5 if spec.fill is None else 1.0, dtype=like.dtype, device=like.device)


def _grid_ids(recipe: Recipe, width: int, size: ExampleSize) -> torch.Tensor:
    """[tokens, width]: the ids of the image and, where there are some, of references behind it."""
    layout, grid = recipe.tokens.grid, recipe.tokens.whole(size.grid)
    columns = layout.columns if isinstance(layout, IdsGrid) else None
    columns = columns or tuple(range(width - len(grid), width))
    ids = torch.zeros(*grid, width)
    for axis, column in enumerate(columns):
        place = torch.arange(grid[axis]).view(*[-1 if i == axis else 1 for i in range(len(grid))])
        ids[..., column] += place
    ids = ids.reshape(-1, width)
    if size.references and isinstance(layout, IdsGrid) and layout.reference_column is not None:
        others = torch.zeros(size.references, width)
        others[:, columns[-1]] = torch.arange(size.references)
        others[:, layout.reference_column] = 1
        ids = torch.cat([ids, others])
    return ids


def takes_text(recipe: Recipe) -> bool:
    """Whether calls have text of any length; class labels, or text that is always padded to one length, are none."""
    return any(isinstance(spec, InputSpec) and "text" in spec.shape for spec in recipe.inputs.values())


def text_length(recipe: Recipe, arguments: Mapping[str, Any]) -> int:
    """The number of text tokens in a call, read off the first input that the recipe says has them; else 0.

    Of a list with one tensor per sample, the longest counts.
    """
    for name, spec in recipe.inputs.items():
        value = arguments.get(name)
        if not isinstance(spec, InputSpec) or "text" not in spec.shape:
            continue
        each = value if isinstance(value, list | tuple) else [value]
        lengths = [v.shape[spec.shape.index("text")] for v in each if isinstance(v, torch.Tensor)]
        if lengths:
            return int(max(lengths))
    return 0
