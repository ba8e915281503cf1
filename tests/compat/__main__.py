"""`make compat`: the model matrix in environments of the oldest and the newest supported versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tests.compat.environments import ROOT, read_compatibility
from tests.compat.page import PAGE, page, read_outcomes, rows_of, write_outcome
from tests.compat.running import run


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Environments; absent: all.")] = None,
    folder: Annotated[Path, typer.Option(help="Where they are made.")] = ROOT / "build" / "compat",
    keep: Annotated[bool, typer.Option(help="Leave them there, and take those that are there.")] = False,
    only_page: Annotated[bool, typer.Option(help="Run nothing: write the page anew.")] = False,
) -> None:
    """Run the matrix of environments.yaml, keep the results, and write docs/compatibility.md from all of them."""
    compatibility = read_compatibility()
    unknown = set(names or ()) - set(compatibility.environments)
    if unknown:
        raise typer.BadParameter(
            f"found {sorted(unknown)}; accepted: {', '.join(compatibility.environments)}"
        )
    for name in () if only_page else names or compatibility.environments:
        write_outcome(name, run(name, compatibility, folder, keep=keep))
    outcomes = read_outcomes(compatibility)
    PAGE.write_text(page(outcomes, rows_of(compatibility)), encoding="utf-8")
    if any(outcome is not None and not outcome.works for outcome in outcomes.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
