"""`sdtm-fx explain`: what a recipe merges in a model of real size, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sdtm_fx.recipe import Recipe


def explain(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a path that ends in .yaml.")],
    model: Annotated[
        str | None,
        typer.Option(help="A published shape, toy-sd3 or toy-flux; by default as the recipe is named."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="config.json of a diffusers model, in place of a published shape.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 28,
    height: Annotated[int, typer.Option(min=1, help="Height in image tokens (64 for 1024 px).")] = 64,
    width: Annotated[int, typer.Option(min=1, help="Width in image tokens.")] = 64,
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="Frames of tokens, for recipes for videos: 21 for 81 frames of Wan."),
    ] = None,
    references: Annotated[int, typer.Option(min=0, help="Tokens of reference images.")] = 0,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per call, with guidance halves.")] = None,
    text: Annotated[int | None, typer.Option(min=1, help="Text tokens.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="What the model computes in, for the cost gate: float32 by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of tables.")] = False,
) -> None:
    """Say what a recipe merges where, and the MACs, on a model that is never loaded."""
    import sdtm_fx
    from sdtm_fx.explaining.render import render
    from sdtm_fx.explaining.shapes import PUBLISHED, build_shape, shape_of

    parsed = sdtm_fx.load_recipe(recipe)
    name = None if config is not None else model or shape_of(parsed.name)
    if config is not None:
        built = _from_config(config)
    else:
        assert name is not None
        built = build_shape(name)
        published = PUBLISHED.get(name)
        if published is not None:
            batch, text = batch or published.halves, text or published.text
    if dtype is not None:
        built.to(_dtype(dtype))
    sdtm_fx.rewrite(built, _fit(parsed, name))
    grid = (height, width) if frames is None else (frames, height, width)
    explanation = sdtm_fx.explain(
        built, steps=steps, grid=grid, batch=batch or 1, text=text, references=references, quiet=True
    )
    if as_json:
        typer.echo(json.dumps(explanation.as_dict(), indent=1))
        return
    console = Console()
    console.print(f"shape: {config or name}", soft_wrap=True, highlight=False)
    console.print(render(explanation))


def _dtype(name: str) -> torch.dtype:
    import torch

    from sdtm_fx.errors import RewriteError

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise RewriteError(f"found dtype {name!r}; accepted: {', '.join(known)}")
    return known[name]


def _from_config(path: Path) -> nn.Module:
    """Build the class that a diffusers config names, on meta."""
    import diffusers
    import torch

    from sdtm_fx.errors import RewriteError

    if not path.is_file():
        raise RewriteError(f"{path}: no such file; give the config.json of a diffusers model")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RewriteError(f"{path}: not JSON ({error})") from error
    name = data.get("_class_name") if isinstance(data, dict) else None
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise RewriteError(f"{path}: _class_name is {name!r}, which is no model class of diffusers")
    build: Any = kind
    with torch.device("meta"):
        model: nn.Module = build.from_config(data)
    return model


def _fit(recipe: Recipe, name: str | None) -> Recipe:
    """Lift the counts of the recipe where the shape is not the one it was written for."""
    from sdtm_fx.explaining.shapes import TOYS

    return recipe.override({"sites.*.expect": None}) if name in TOYS else recipe
