"""Where the image tokens are: their grid, and the arguments of an example call of the model."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, GetCoreSchemaHandler, Tag
from pydantic_core import core_schema

from sdtm_fx.recipe.part import Identifier, Part, Positive, Text


class LatentGrid(Part):
    """The grid follows from the height and width of the latent, which the model cuts into patches."""

    latent: Text
    """Argument of the model that is the latent [batch, channels, height, width]."""
    patch: Positive | tuple[Positive, Positive]
    """Edge of a square patch, or its height and width, in latent pixels."""
    round: Literal["down", "up"] = "down"
    """What becomes of a latent that patches do not divide: cut (``down``, as patch embeddings do), or covered (``up``,
    as the strided convolutions of a U-Net do)."""
    square: bool = False
    """Whether the model takes square images alone, so that example calls are square."""


class IdsGrid(Part):
    """The grid follows from position ids that the model is given."""

    ids: Text
    """Argument of the model that holds the ids [tokens, 3] (the last two columns: row, column)."""


class FixedGrid(Part):
    """The grid is always the same."""

    height: Positive
    """Rows of image tokens."""
    width: Positive
    """Columns of image tokens."""


def grid_tag(grid: object) -> str | None:
    """Name the alternative that a grid is written as, or None when it names none."""
    if isinstance(grid, Part):
        return _TAGS.get(type(grid))
    if not isinstance(grid, dict):
        return None
    if "latent" in grid:
        return "<latent>"
    if "ids" in grid:
        return "<ids>"
    return "<fixed>" if "height" in grid or "width" in grid else None


_TAGS: dict[type, str] = {LatentGrid: "<latent>", IdsGrid: "<ids>", FixedGrid: "<fixed>"}

Grid: TypeAlias = Annotated[
    Annotated[LatentGrid, Tag("<latent>")]
    | Annotated[IdsGrid, Tag("<ids>")]
    | Annotated[FixedGrid, Tag("<fixed>")],
    Discriminator(grid_tag),
]


class Tokens(Part):
    """Layout of the image tokens."""

    grid: Grid
    """Where height and width of the token grid come from."""


Dimension: TypeAlias = Positive | Identifier


class InputSpec(Part):
    """Shape of one argument of the model in an example call. A bare list is the shape alone."""

    shape: tuple[Dimension, ...]
    """Sizes: integers, ``batch``, ``text``, ``height``, ``width`` (of the latent), ``tokens`` (of the image),
    or the name of an attribute of the model's config."""
    fill: Literal["zeros", "ones", "grid_ids", "labels"] | None = None
    """What the tensor holds; absent: small random numbers. ``labels`` are whole numbers: classes, styles."""
    when: Text | None = None
    """Attribute of the model's config that must be true for the argument to be passed."""


class _OrBareList:
    """Lets a list stand for the mapping ``{shape: list}``."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        shape = handler.generate_schema(tuple[Dimension, ...])
        from_list = core_schema.no_info_after_validator_function(lambda dims: InputSpec(shape=dims), shape)
        return core_schema.tagged_union_schema(
            {"<list>": from_list, "<mapping>": handler(source)},
            discriminator=lambda value: "<list>" if isinstance(value, (list, tuple)) else "<mapping>",
        )


Input: TypeAlias = Annotated[InputSpec, _OrBareList()]
