"""`sdtm-fx inspect`: what a model consists of, and where tokens could be merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Model = Annotated[
    str,
    typer.Argument(
        help="A model class of diffusers, a checkpoint folder, a config.json, or a published shape (flux.1-dev)."
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(help="config.json for a class; by default its own defaults.", show_default=False),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Argument of the example call, name=dimensions[:fill][:int]: timestep=batch, ids=tokens,3:grid_ids.",
    ),
]
Layers = Annotated[
    int, typer.Option(min=1, help="Most layers of each kind in the copy with random weights that is run.")
]


def inspect(
    model: Model,
    config: Config = None,
    inputs: Inputs = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe whose sites are marked.")] = None,
    height: Annotated[int, typer.Option(min=1, help="Height in image tokens, for MACs.")] = 64,
    width: Annotated[int, typer.Option(min=1, help="Width in image tokens.")] = 64,
    text: Annotated[int, typer.Option(min=1, help="Text tokens.")] = 77,
    batch: Annotated[int, typer.Option(min=1, help="Samples per call, with guidance halves.")] = 1,
    draw: Annotated[
        Path | None,
        typer.Option(
            help="Draw the blocks, before and after --recipe: .svg, .html or .dot.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of tables.")] = False,
) -> None:
    """Say how a model is built, where image tokens are in it, and which modules could merge them."""
    import diffusers

    from sdtm_fx.inspecting.inspect import survey
    from sdtm_fx.inspecting.marks import mark
    from sdtm_fx.inspecting.opening import open_subject
    from sdtm_fx.inspecting.render import as_data, render
    from sdtm_fx.recipe import load_recipe

    diffusers.utils.logging.set_verbosity_error()
    parsed = load_recipe(recipe) if recipe is not None else None
    found = survey(open_subject(model, config), inputs or (), grid=(height, width), text=text, batch=batch)
    marks = None if parsed is None else mark(found, parsed)
    if draw is not None:
        from sdtm_fx.inspecting.draw import draw_blocks

        draw_blocks(found, parsed, draw)
    if as_json:
        typer.echo(json.dumps(as_data(found, marks), indent=1))
    else:
        Console().print(render(found, marks))
