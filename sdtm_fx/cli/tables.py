"""`sdtm-fx tables`: evaluations and comparisons as a page in Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def tables(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="What `sdtm-fx eval` (evaluation.json) and `sdtm-fx bench --compare` (--out) wrote, in any order."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write; absent: standard output.", show_default=False)
    ] = None,
) -> None:
    """Write the tables of evaluations and comparisons in Markdown, with what they were measured on."""
    from sdtm_fx.bench.page import comparison_section, holds_comparison, read_comparison
    from sdtm_fx.evaluate.page import evaluation_section, read_evaluation

    text = "\n".join(
        comparison_section(read_comparison(path))
        if holds_comparison(path)
        else evaluation_section(read_evaluation(path))
        for path in files
    )
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
