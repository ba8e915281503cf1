"""`sdtm-fx methods`: list the merging methods, explain one, and write the page about all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

methods = typer.Typer(no_args_is_help=True, help="Look at merging methods.")


@methods.command("list")
def list_all() -> None:
    """List the methods."""
    from sdtm_fx.explaining.methods_page import describe_method
    from sdtm_fx.methods import METHODS

    table = Table("name", "what it does", "when to use it")
    for name, method in METHODS.items():
        entry = describe_method(name, method)
        table.add_row(name, entry.summary, entry.use)
    Console().print(table)


@methods.command()
def show(name: Annotated[str, typer.Argument(help="Name of a method.")]) -> None:
    """Explain a method: formula, options, cost."""
    from sdtm_fx.explaining.methods_page import method_section
    from sdtm_fx.methods import method_named

    Console().print(Markdown(method_section(name, method_named(name))))


@methods.command()
def page(
    out: Annotated[
        Path | None, typer.Option(help="File to write; absent: standard output.", show_default=False)
    ] = None,
) -> None:
    """Write the page about all methods, in Markdown."""
    from sdtm_fx.explaining.methods_page import methods_page
    from sdtm_fx.methods import METHODS

    text = methods_page(METHODS)
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
