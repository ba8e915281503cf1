"""`sdtm-fx tables`: evaluations, comparisons and searches as a page in Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def tables(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="What `sdtm-fx eval` (evaluation.json), `sdtm-fx bench --compare` (--out) and `sdtm-fx tune` (--json) "
            "wrote, in any order."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write; absent: standard output.", show_default=False)
    ] = None,
) -> None:
    """Write the tables of evaluations, comparisons and searches in Markdown, with what they were measured on."""
    from sdtm_fx.bench.page import comparison_section, holds_comparison, read_comparison
    from sdtm_fx.evaluate.page import evaluation_section, read_evaluation
    from sdtm_fx.tuning.page import holds_tuning, read_tuning, tuning_section

    def section(path: Path) -> str:
        if holds_comparison(path):
            return comparison_section(read_comparison(path))
        if holds_tuning(path):
            return tuning_section(read_tuning(path))
        return evaluation_section(read_evaluation(path))

    text = "\n".join(map(section, files))
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
