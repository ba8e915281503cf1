"""`sdtm-fx author`: a first recipe for a model that none was written for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from sdtm_fx.cli.inspect import Config, Inputs, Layers, Model


def author(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Recipe to write, a file that ends in .yaml.")],
    config: Config = None,
    inputs: Inputs = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the recipe; by default as the file is called.", show_default=False),
    ] = None,
    layers: Layers = 2,
) -> None:
    """Draft a recipe from a model's structure, and try it out on a small copy; exit with 1 if that fails."""
    import diffusers

    from sdtm_fx.authoring.author import author as write
    from sdtm_fx.inspecting.inspect import survey
    from sdtm_fx.inspecting.opening import open_subject

    diffusers.utils.logging.set_verbosity_error()
    draft = write(
        survey(open_subject(model, config), inputs or (), layers=layers), out, name=name, layers=layers
    )
    console = Console(soft_wrap=True, highlight=False)
    for check in draft.checks:
        console.print(Text(f"{check.name}: {check.says}", "" if check.passed else "red"))
    for guess in draft.unsure:
        console.print(Text(f"unsure, {guess}"))
    if draft.passed:
        console.print(Text(f"wrote {out}"))
        return
    console.print(
        Text(
            f"wrote {out}, which does not work yet: edit what the last check names, then run sdtm-fx recipes validate "
            f"{out} --model {model}{'' if config is None else f' --config {config}'}"
        )
    )
    raise typer.Exit(1)
