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
            "wrote, in any order. Parts of one study are joined."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write; absent: standard output.", show_default=False)
    ] = None,
) -> None:
    """Write the tables of evaluations, comparisons and searches in Markdown, with what they were measured on."""
    from sdtm_fx.bench.page import comparison_section, holds_comparison, read_comparison
    from sdtm_fx.evaluate.page import evaluation_section, join_parts, read_evaluation
    from sdtm_fx.tuning.page import holds_tuning, read_tuning, tuning_section

    evaluations = {p: read_evaluation(p) for p in files if not (holds_comparison(p) or holds_tuning(p))}
    joined = {id(parts[0]): parts for parts in join_parts([*evaluations.values()])}
    sections: list[str] = []
    for path in files:
        if holds_comparison(path):
            sections.append(comparison_section(read_comparison(path)))
        elif holds_tuning(path):
            sections.append(tuning_section(read_tuning(path)))
        elif (parts := joined.get(id(evaluations[path]))) is not None:
            sections.append(evaluation_section(*parts))
    text = "\n".join(sections)
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
