"""`sdtm-fx toy`: train, export, grade and look at the toys, and train their judge."""

from __future__ import annotations

import typer

from sdtm_fx.cli.toy_look import grade, sheet
from sdtm_fx.cli.toy_train import export, judge, train

toy = typer.Typer(
    help="Train, export, grade and look at the toys, and train their judge.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
toy.command()(train)
toy.command()(export)
toy.command()(judge)
toy.command()(grade)
toy.command()(sheet)
