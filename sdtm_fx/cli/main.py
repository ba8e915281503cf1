"""`sdtm-fx`: the commands together."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from sdtm_fx.cli.analyze import analyze
from sdtm_fx.cli.author import author
from sdtm_fx.cli.bench import bench
from sdtm_fx.cli.calibrate import calibrate
from sdtm_fx.cli.demo import demo
from sdtm_fx.cli.eval import evaluate
from sdtm_fx.cli.explain import explain
from sdtm_fx.cli.inspect import inspect
from sdtm_fx.cli.methods import methods
from sdtm_fx.cli.recipes import recipes
from sdtm_fx.cli.tables import tables
from sdtm_fx.cli.toy import toy
from sdtm_fx.cli.tune import tune
from sdtm_fx.errors import SdtmFxError


class _Commands(TyperGroup):
    """Shows the errors of this package as text; anything else is a defect, and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except SdtmFxError as error:
            Console(stderr=True, soft_wrap=True).print(Text(f"{type(error).__name__}: {error}", "red"))
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    help="Token reduction for diffusion transformers, by recipes over torch.fx graphs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(analyze)
app.command()(author)
app.command()(bench)
app.command()(calibrate)
app.command()(demo)
app.command("eval")(evaluate)
app.command()(explain)
app.command()(inspect)
app.command()(tables)
app.command()(tune)
app.add_typer(methods, name="methods")
app.add_typer(recipes, name="recipes")
app.add_typer(toy, name="toy")

if __name__ == "__main__":
    app()
