"""Where the image tokens are: their grid, and the arguments of an example call of the model."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, GetCoreSchemaHandler, Tag
from pydantic_core import core_schema

from sdtm_fx.errors import PlanError
from sdtm_fx.grids import TokenGrid, show_grid
from sdtm_fx.recipe.part import Count, Identifier, Part, Positive, Text, Version


class LatentGrid(Part):
    """The grid follows from the sides of the latent, which the model cuts into patches."""

    latent: Text
    """Argument of the model that is the latent, [batch, channels, height, width] or [batch, channels, frames, height,
    width]; or a list of latents without the batch, one per sample, all of one shape."""
    patch: Positive | tuple[Positive, Positive] | tuple[Positive, Positive, Positive]
    """Edge of a square patch, or its height and width, in latent pixels; or its frames, height and width, where the
    grid has frames."""
    axes: Annotated[tuple[Count, ...], Field(min_length=2, max_length=3)] | None = None
    """Axes of the latent that the patch cuts, counted from 0; absent: its last ones. A latent [batch, frames, channels,
    height, width] has [1, 3, 4]."""
    round: Literal["down", "up"] = "down"
    """What becomes of a latent that patches do not divide: cut (``down``, as patch embeddings do), or covered (``up``,
    as the strided convolutions of a U-Net do)."""
    square: bool = False
    """Whether the model takes square images alone, so that example calls are square."""

    @property
    def patches(self) -> tuple[int, ...]:
        """Sides of a patch, as many as the grid has."""
        return (self.patch, self.patch) if isinstance(self.patch, int) else self.patch


class IdsGrid(Part):
    """The grid follows from position ids that the model is given."""

    ids: Text
    """Argument of the model that holds the ids, [tokens, columns]."""
    columns: Annotated[tuple[Count, ...], Field(min_length=2, max_length=3)] | None = None
    """Columns that hold row and column, or frame, row and column; absent: the last two."""
    reference_column: Count | None = None
    """Column in which the ids of reference tokens, that follow the image in its sequence and are never merged, differ
    from the first row's; absent: there are none."""


class ArgumentsGrid(Part):
    """The model is given the sides of the grid as integers."""

    arguments: Annotated[tuple[Text, ...], Field(min_length=2, max_length=3)]
    """Arguments of the model that are height and width, or frames, height and width, in tokens."""


class ShapesGrid(Part):
    """The model is given the sides of the grid as a list."""

    shapes: Text
    """Argument of the model that holds a list for every sample: (frames, height, width) of the image in tokens, and of
    further images, whose tokens follow it in the sequence: references, which are never merged."""


class FixedGrid(Part):
    """The grid is always the same."""

    frames: Positive | None = None
    """Frames of image tokens; absent: the model is none of videos."""
    height: Positive
    """Rows of image tokens."""
    width: Positive
    """Columns of image tokens."""

    @property
    def grid(self) -> TokenGrid:
        """The grid."""
        return (self.height, self.width) if self.frames is None else (self.frames, self.height, self.width)


_KEYS: dict[str, str] = {
    "latent": "<latent>",
    "ids": "<ids>",
    "arguments": "<arguments>",
    "shapes": "<shapes>",
}


def grid_tag(grid: object) -> str | None:
    """Name the alternative that a grid is written as, or None when it names none."""
    if isinstance(grid, Part):
        return _TAGS.get(type(grid))
    if not isinstance(grid, dict):
        return None
    named = next((tag for key, tag in _KEYS.items() if key in grid), None)
    return named or ("<fixed>" if "height" in grid or "width" in grid else None)


_TAGS: dict[type, str] = {
    LatentGrid: "<latent>",
    IdsGrid: "<ids>",
    ArgumentsGrid: "<arguments>",
    ShapesGrid: "<shapes>",
    FixedGrid: "<fixed>",
}

Grid: TypeAlias = Annotated[
    Annotated[LatentGrid, Tag("<latent>")]
    | Annotated[IdsGrid, Tag("<ids>")]
    | Annotated[ArgumentsGrid, Tag("<arguments>")]
    | Annotated[ShapesGrid, Tag("<shapes>")]
    | Annotated[FixedGrid, Tag("<fixed>")],
    Discriminator(grid_tag),
]


def has_frames(layout: Grid) -> bool:
    """Return whether grids have frames: (frames, height, width) in place of (height, width)."""
    if isinstance(layout, LatentGrid):
        return len(layout.patches) == 3
    if isinstance(layout, IdsGrid):
        return layout.columns is not None and len(layout.columns) == 3
    if isinstance(layout, ArgumentsGrid):
        return len(layout.arguments) == 3
    return isinstance(layout, ShapesGrid) or layout.frames is not None


class Protect(Part):
    """Image tokens that are never merged."""

    first_frames: Count = 0
    """Number of leading frames, in tokens: 1 where a video begins with a given image."""


class Tokens(Part):
    """Layout of the image tokens."""

    grid: Grid
    """Where the sides of the token grid come from."""
    protect: Protect = Protect()
    """Image tokens that are never merged. Ratios are parts of the others."""

    @property
    def has_frames(self) -> bool:
        """Whether grids have frames."""
        return has_frames(self.grid)

    @property
    def has_references(self) -> bool:
        """Whether tokens of reference images may follow those of the image."""
        return isinstance(self.grid, ShapesGrid) or (
            isinstance(self.grid, IdsGrid) and self.grid.reference_column is not None
        )

    def mergeable(self, grid: TokenGrid) -> TokenGrid:
        """Return the grid of the tokens that may be merged: what is left of a grid behind its protected frames.

        Raises:
            PlanError: The grid is of another kind than the recipe's, or nothing is left.
        """
        sides = 3 if self.has_frames else 2
        if len(grid) != sides:
            kind = "(frames, height, width)" if self.has_frames else "(height, width)"
            raise PlanError(f"found a grid of {show_grid(grid)} tokens; this recipe accepts {kind}")
        first = self.protect.first_frames
        if not first:
            return grid
        if grid[0] <= first:
            raise PlanError(
                f"tokens.protect: found {grid[0]} frames of tokens, of which first_frames protects {first}; accepted: "
                f"{first + 1} or more, so that something is left to merge"
            )
        return (grid[0] - first, *grid[1:])

    def whole(self, grid: TokenGrid) -> TokenGrid:
        """Return the grid of all image tokens, from that of those that may be merged."""
        first = self.protect.first_frames
        return (grid[0] + first, *grid[1:]) if first else grid

    def protected(self, grid: TokenGrid) -> int:
        """Return how many protected image tokens stand in front of those that may be merged."""
        return self.protect.first_frames * math.prod(grid[-2:])


Dimension: TypeAlias = Positive | Identifier


class InputSpec(Part):
    """Shape of one argument of the model in an example call. A bare list is the shape alone."""

    shape: tuple[Dimension, ...]
    """Sizes: integers, ``batch``, ``text``, ``frames``, ``height``, ``width`` (of the latent), ``tokens`` (of the
    image and of references), or the name of an attribute of the model's config."""
    copies: Dimension | None = None
    """The argument is a tuple of so many such tensors, or with ``batch`` a list with one for every sample; absent: it
    is one tensor."""
    fill: Literal["zeros", "ones", "grid_ids", "labels"] | None = None
    """What the tensor holds; absent: small random numbers. ``labels`` are whole numbers: classes, styles."""
    read: bool = False
    """Whether the model reads its values on the host, as it does with a mask to tell lengths of prompts: it then holds
    whole numbers, `fill` says ``ones``, and a trace knows them."""
    when: Text | None = None
    """Attribute of the model's config that must be true for the argument to be passed."""
    before: Version | None = None
    """Version of diffusers that does without the argument: it is passed to the model of older ones alone."""


class NumberInput(Part):
    """An argument of the model in an example call that is an integer. A bare size is the number alone."""

    number: Dimension
    """A size, as in a shape."""
    copies: Dimension | None = None
    """The argument is a tuple of so many such integers, or with ``batch`` a list with one for every sample; absent: it
    is one integer."""
    when: Text | None = None
    """Attribute of the model's config that must be true for the argument to be passed."""
    before: Version | None = None
    """Version of diffusers that does without the argument: it is passed to the model of older ones alone."""


class ShapesInput(Part):
    """The argument of `ShapesGrid` in an example call: for every sample [(frames, height, width), ...]."""

    fill: Literal["grid_shapes"]
    """What the list holds."""


class _OrBare:
    """Lets a list stand for the mapping ``{shape: list}``, and a size for ``{number: size}``."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        shape = handler.generate_schema(tuple[Dimension, ...])
        number = handler.generate_schema(Dimension)
        from_list = core_schema.no_info_after_validator_function(lambda dims: InputSpec(shape=dims), shape)
        from_size = core_schema.no_info_after_validator_function(
            lambda size: NumberInput(number=size), number
        )
        return core_schema.tagged_union_schema(
            {
                "<list>": from_list,
                "<size>": from_size,
                "<number>": handler.generate_schema(NumberInput),
                "<shapes>": handler.generate_schema(ShapesInput),
                "<mapping>": handler.generate_schema(InputSpec),
            },
            discriminator=_input_tag,
        )


def _input_tag(value: object) -> str:
    if isinstance(value, list | tuple):
        return "<list>"
    if isinstance(value, int | str):
        return "<size>"
    keys = value if isinstance(value, dict) else dict(value) if isinstance(value, Part) else {}
    if "number" in keys:
        return "<number>"
    return "<shapes>" if keys.get("fill") == "grid_shapes" else "<mapping>"


AnyInput: TypeAlias = InputSpec | NumberInput | ShapesInput
Input: TypeAlias = Annotated[AnyInput, _OrBare()]
