"""`sdtm-fx recipes`: list, show, validate, the JSON Schema for editors, and what recipes cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from sdtm_fx.cli.inspect import Config, Layers

if TYPE_CHECKING:
    from sdtm_fx.inspecting.opening import Subject
    from sdtm_fx.recipe import Recipe

recipes = typer.Typer(no_args_is_help=True, help="Look at recipes.")

Source = Annotated[str, typer.Argument(help="Name of a shipped recipe, or a path that ends in .yaml.")]


@recipes.command("list")
def list_all() -> None:
    """List the shipped recipes."""
    from sdtm_fx.recipe import list_recipes, load_recipe

    table = Table("name", "model", "description")
    for name in list_recipes():
        recipe = load_recipe(name)
        table.add_row(name, ", ".join(recipe.model), recipe.description)
    Console().print(table)


@recipes.command()
def show(source: Source) -> None:
    """Print a recipe in full: what it extends and every default written out."""
    from sdtm_fx.recipe import load_recipe

    typer.echo(load_recipe(source).to_yaml(), nl=False)


@recipes.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="Recipe files.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Also try them on this model: a class of diffusers, a checkpoint folder, a config.json, or a "
            "published shape.",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    layers: Layers = 2,
) -> None:
    """Check recipe files, and with --model run them on a small copy of it; exit with 1 if one fails."""
    from sdtm_fx.errors import RecipeError
    from sdtm_fx.recipe import Recipe

    subject = _subject(model, config)
    failed = 0
    for file in files:
        try:
            recipe = Recipe.from_file(file)
        except RecipeError as error:
            failed += 1
            typer.echo(str(error), err=True)
            continue
        typer.echo(f"{file}: {recipe.name} is valid, fingerprint {recipe.fingerprint()[:12]}")
        if subject is not None:
            failed += not _tried(recipe, subject, layers)
    if failed:
        raise typer.Exit(1)


def _subject(model: str | None, config: Path | None) -> Subject | None:
    """What recipes are tried on; a config.json that names its class is enough."""
    if model is None and config is None:
        return None
    import diffusers

    from sdtm_fx.inspecting.opening import open_subject

    diffusers.utils.logging.set_verbosity_error()
    return open_subject(str(config)) if model is None else open_subject(model, config)


def _tried(recipe: Recipe, subject: Subject, layers: int) -> bool:
    """Try a recipe, say how it went, and return whether all went well."""
    from sdtm_fx.authoring.checking import try_recipe

    checks = try_recipe(recipe, subject, layers)
    for check in checks:
        typer.echo(f"{check.name}: {check.says}", err=not check.passed)
    return all(check.passed for check in checks)


@recipes.command()
def schema() -> None:
    """Print the JSON Schema of recipe files."""
    from sdtm_fx.recipe import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@recipes.command()
def budgets(
    names: Annotated[
        list[str] | None, typer.Argument(help="Recipes; by default all that follow publications.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; absent: standard output.", show_default=False)
    ] = None,
) -> None:
    """Write what the recipes that follow publications cost, beside what their sources say, in Markdown."""
    from sdtm_fx.explaining.budgets_page import budgets_page, choose_rows

    text = budgets_page(choose_rows(names or ()))
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")


@recipes.command()
def table(
    names: Annotated[
        list[str] | None, typer.Argument(help="Recipes; by default all for published models.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; absent: standard output.", show_default=False)
    ] = None,
) -> None:
    """Write what recipes merge in the models that they are for, and what a step costs with them, in Markdown."""
    from sdtm_fx.explaining.models_page import choose_recipes, models_page

    text = models_page(choose_recipes(names or ()))
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
