"""`sdtm-fx tables`: evaluations as a page in Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def tables(
    files: Annotated[list[Path], typer.Argument(help="evaluation.json files that `sdtm-fx eval` wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; absent: standard output.", show_default=False)
    ] = None,
) -> None:
    """Write the tables of evaluations in Markdown, with what they were measured on."""
    from sdtm_fx.evaluate.page import read_evaluation, results_page

    text = results_page([read_evaluation(path) for path in files])
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
