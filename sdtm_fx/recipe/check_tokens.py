"""What the layout of the image tokens demands of the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sdtm_fx.grids import show_grid
from sdtm_fx.methods import Method
from sdtm_fx.recipe.problems import Problem, misfit
from sdtm_fx.recipe.sections import REST
from sdtm_fx.recipe.tokens import InputSpec, LatentGrid, ShapesGrid, ShapesInput

if TYPE_CHECKING:
    from sdtm_fx.recipe.schema import Recipe


def check_tokens(recipe: Recipe) -> Iterator[Problem]:
    """Check that frames, protected tokens, references and what stands around the image go together."""
    yield from _check_grid(recipe)
    yield from _check_sites(recipe)
    yield from _check_windows(recipe)
    yield from _check_methods(recipe)
    yield from _check_spans(recipe)


def windows_of(method: Method) -> tuple[int, ...] | None:
    """Return the window, or the tile, that a method has with frames of its own; None where it has none."""
    for key in ("window", "tile"):
        window = getattr(method, key, None)
        if window is not None and len(window) == 3:
            return tuple(window)
    return None


def _check_grid(recipe: Recipe) -> Iterator[Problem]:
    tokens, path = recipe.tokens, ("tokens", "grid", "axes")
    layout, first = tokens.grid, tokens.protect.first_frames
    if isinstance(layout, LatentGrid) and layout.axes is not None:
        sides = len(layout.patches)
        if len(layout.axes) != sides:
            yield misfit(path, f"{len(layout.axes)} axes for a patch of {sides} sides", f"{sides} axes")
        elif len(set(layout.axes)) != sides:
            yield misfit(path, f"{list(layout.axes)}, which names an axis twice", "different axes")
    if first and not tokens.has_frames:
        yield misfit(
            ("tokens", "protect", "first_frames"),
            f"{first} with a grid of (height, width)",
            "0, or a grid with frames: a patch, columns or arguments of three entries",
        )
    for name, spec in recipe.inputs.items():
        if isinstance(spec, ShapesInput) and not (isinstance(layout, ShapesGrid) and layout.shapes == name):
            yield misfit(
                ("inputs", name, "fill"),
                "'grid_shapes' for an argument that the grid is not read from",
                "the argument that `tokens.grid` names as `shapes`",
            )
        if isinstance(spec, InputSpec) and spec.read and spec.fill != "ones":
            yield misfit(
                ("inputs", name, "read"),
                f"true beside {'no fill' if spec.fill is None else f'fill {spec.fill!r}'}",
                "fill: ones",
            )


def _check_sites(recipe: Recipe) -> Iterator[Problem]:
    for index, site in enumerate(recipe.sites):
        if site.prefix == site.suffix == REST:
            yield misfit(
                ("sites", index, "suffix"),
                f"{REST!r} beside prefix {REST!r}",
                "what is left of the sequence on one side of the image alone",
            )
        if site.downsample > 1 and recipe.tokens.has_references:
            yield misfit(
                ("sites", index, "downsample"),
                f"{site.downsample} beside reference tokens, which have a size of their own",
                "1",
            )


def _check_windows(recipe: Recipe) -> Iterator[Problem]:
    for index, stage in enumerate(recipe.stages):
        if stage.inside is not None and windows_of(stage.inside.method) is not None:
            yield misfit(
                ("stages", index, "inside", "method"),
                "a window of three sides inside of a span, where there is no grid",
                "(height, width)",
            )
        window = windows_of(stage.method)
        if window is not None and not recipe.tokens.has_frames:
            yield misfit(
                ("stages", index, "method", "window" if hasattr(stage.method, "window") else "tile"),
                f"{show_grid(window)} (frames, height, width) with a grid of (height, width)",
                "two sides, or a grid with frames: a patch, columns or arguments of three entries",
            )


def _check_methods(recipe: Recipe) -> Iterator[Problem]:
    others = recipe.tokens.has_references or recipe.tokens.protect.first_frames
    for index, stage in enumerate(recipe.stages):
        if others and "text" in stage.method.wants():
            yield misfit(
                ("stages", index, "method"),
                f"{stage.method.name}, which reads attention to text, beside image tokens that are never merged and "
                "would count as such",
                "a method that reads no text, or a recipe without protected frames and references",
            )


def _check_spans(recipe: Recipe) -> Iterator[Problem]:
    behind = [site.id for site in recipe.sites if site.suffix is not None]
    for index, span in enumerate(recipe.spans):
        if span.rotary is not None and behind:
            yield misfit(
                ("spans", index, "rotary"),
                f"rotary tables of a span, whose text rows stand in front, beside site {behind[0]!r} with text behind "
                "the image",
                "a span without `rotary`, or sites without `suffix`",
            )
