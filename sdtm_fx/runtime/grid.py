"""The token grid of a call: from the latent, from position ids, or from sides that the model is given."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sdtm_fx.errors import PlanError
from sdtm_fx.grids import TokenGrid, show_grid
from sdtm_fx.recipe.tokens import ArgumentsGrid, FixedGrid, IdsGrid, LatentGrid, ShapesGrid, Tokens


@dataclass(frozen=True)
class ImageLayout:
    """Where the image tokens of a call are.

    Attributes:
        grid: Sides of the grid of the tokens that may be merged: height and width, behind the frames where there are
            some. Protected frames are left out.
        references: Number of tokens of reference images, which follow those of the image.
    """

    grid: TokenGrid
    references: int = 0


class GridReader:
    """Reads the layout of the image tokens off the arguments of a model call.

    Ids live on the device, so reading them waits for it; the answer is kept for as long as the caller passes
    the same tensor, which pipelines do through a whole generation.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._last: tuple[weakref.ref[torch.Tensor], int, ImageLayout] | None = None

    def read(self, arguments: Mapping[str, Any]) -> ImageLayout:
        """Return the grid of the tokens that may be merged, and the number of reference tokens.

        Args:
            arguments: All arguments of the call, by name.

        Raises:
            PlanError: The argument is missing or does not describe a grid, or all of it is protected.
        """
        found = self._read(arguments)
        return ImageLayout(self._tokens.mergeable(found.grid), found.references)

    def _read(self, arguments: Mapping[str, Any]) -> ImageLayout:
        layout = self._tokens.grid
        if isinstance(layout, FixedGrid):
            return ImageLayout(layout.grid)
        if isinstance(layout, ArgumentsGrid):
            return ImageLayout(tuple(_side(name, arguments.get(name)) for name in layout.arguments))
        if isinstance(layout, ShapesGrid):
            return _of_shapes(layout.shapes, arguments.get(layout.shapes))
        name = layout.latent if isinstance(layout, LatentGrid) else layout.ids
        value = arguments.get(name)
        if isinstance(layout, LatentGrid) and isinstance(value, list | tuple) and value:
            value = _one_of(name, value)
        if not isinstance(value, torch.Tensor):
            raise PlanError(
                f"tokens.grid names argument {name!r}, this call has {type(value).__name__}; "
                f"it has {', '.join(k for k, v in arguments.items() if isinstance(v, torch.Tensor))}"
            )
        if isinstance(layout, LatentGrid):
            return ImageLayout(_of_latent(layout, value))
        return self._read_ids(layout, value)

    def _read_ids(self, layout: IdsGrid, ids: torch.Tensor) -> ImageLayout:
        # Tensors of inference mode count no changes in place; theirs would go unnoticed.
        version = 0 if ids.is_inference() else ids._version
        if self._last is not None and self._last[0]() is ids and self._last[1] == version:
            return self._last[2]
        found = _of_ids(layout, ids.detach()[0] if ids.ndim == 3 else ids.detach())
        self._last = (weakref.ref(ids), version, found)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> GridReader:
        return GridReader(self._tokens)


def _side(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PlanError(
            f"tokens.grid names argument {name!r}, this call has {value!r}; accepted: a positive integer, a side "
            "of the grid in tokens"
        )
    return value


def _of_shapes(name: str, value: object) -> ImageLayout:
    samples = list(value) if isinstance(value, list | tuple) else []
    each = [[sample] if _is_shape(sample) else sample for sample in samples]
    if not each or not all(isinstance(s, list | tuple) and s and all(map(_is_shape, s)) for s in each):
        raise PlanError(
            f"tokens.grid names argument {name!r}, this call has {value!r}; accepted: for every sample a list of "
            "(frames, height, width) in tokens, that of the image first"
        )
    image, *references = (tuple(map(int, shape)) for shape in each[0])
    if any([tuple(map(int, shape)) for shape in sample] != [image, *references] for sample in each):
        raise PlanError(
            f"tokens.grid: {name!r} gives samples of one call shapes that differ ({value!r}); accepted: equal ones, "
            "or a call for each"
        )
    return ImageLayout(image, sum(map(math.prod, references)))


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(side, int) for side in value)
    )


def _one_of(name: str, latents: Sequence[object]) -> object:
    """The first of a list of latents, which have to be of one shape."""
    shapes = [tuple(v.shape) if isinstance(v, torch.Tensor) else type(v).__name__ for v in latents]
    if any(shape != shapes[0] for shape in shapes):
        raise PlanError(
            f"tokens.grid: {name!r} holds latents that differ ({', '.join(map(str, shapes))}); accepted: a list of "
            "tensors of one shape, so that samples have one grid, or a call for each"
        )
    return latents[0]


def _of_latent(layout: LatentGrid, latent: torch.Tensor) -> TokenGrid:
    patches = layout.patches
    axes = layout.axes or tuple(range(latent.ndim - len(patches), latent.ndim))
    if min(axes) < 0 or max(axes) >= latent.ndim:
        raise PlanError(
            f"tokens.grid: latent {layout.latent!r} has shape {tuple(latent.shape)}; patch {show_grid(patches)} cuts "
            f"{f'axes {list(axes)}' if layout.axes else f'its last {len(patches)} axes'}"
        )
    sides = zip((latent.shape[axis] for axis in axes), patches, strict=True)
    return tuple(-(-side // edge) if layout.round == "up" else side // edge for side, edge in sides)


def _of_ids(layout: IdsGrid, ids: torch.Tensor) -> ImageLayout:
    columns = layout.columns or (ids.shape[-1] - 2, ids.shape[-1] - 1)
    most = max(columns if layout.reference_column is None else (*columns, layout.reference_column))
    if ids.ndim != 2 or most >= ids.shape[1]:
        raise PlanError(
            f"tokens.grid: ids {layout.ids!r} have shape {tuple(ids.shape)}; accepted: [tokens, columns] with "
            f"{most + 1} columns or more"
        )
    image = ids.shape[0]
    if layout.reference_column is not None:
        own = ids[:, layout.reference_column] == ids[0, layout.reference_column]
        image, first = int(own.sum()), int(own.long().cumprod(0).sum())
        if image != first:
            raise PlanError(
                f"tokens.grid: ids {layout.ids!r} go back to the image behind those of references (column "
                f"{layout.reference_column}); accepted: the image first, all references behind it"
            )
    rows = ids[:image, list(columns)]
    grid = tuple(int(v) + 1 for v in (rows.amax(0) - rows.amin(0)).tolist())
    if math.prod(grid) != image:
        frames = f"{grid[0]} frames, " if len(grid) == 3 else ""
        raise PlanError(
            f"tokens.grid: ids {layout.ids!r} span {frames}{grid[-2]} rows and {grid[-1]} columns but hold {image} "
            "tokens; they are not one grid (`reference_column` tells references apart)"
        )
    return ImageLayout(grid, ids.shape[0] - image)
