"""The page about the recipes that follow publications: what each costs, beside what its source says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from sdtm_fx.cost.counter import Macs
from sdtm_fx.errors import RecipeError, nearest
from sdtm_fx.explaining.budgets import Budget, count_budget
from sdtm_fx.explaining.published import ABSENT, PIXELS, ROWS, Row
from sdtm_fx.explaining.shapes import PUBLISHED, build_shape, shape_of
from sdtm_fx.recipe.load import load_recipe
from sdtm_fx.recipe.schema import Recipe

_HEAD = """\
# Baselines

Methods of other papers as recipes, `baselines/<method>-<model>`, and SDTM's own under `paper/`. This page is written by
`sdtm-fx recipes budgets`, from the recipes and the cost model, on the published shapes without weights. Each file says
which settings it takes from its paper, and what no source says and was chosen here.

MACs are those of one denoising step at 1024 px, the mean over all steps of a generation, guidance halves and what
finding tokens costs included: of linear layers and convolutions alone, which is the convention of the SDTM paper, and
of all products. Where a source says what a method costs and not at which ratio, the ratio was chosen to meet that cost;
elsewhere it is the published one. *Difference* is that of the shares of the dense model, in the convention of the
figure. How much `ca_tome` merges, images decide: given is the least that it can cost.

Recipes for the toys of this package (`-toy-sd3`, `-toy-flux`) follow those of `sd3-medium` and `flux.1-dev`.
"""

_COLUMNS = (
    "recipe", "method", "steps", "linear MACs", "total MACs", "of dense, linear", "of dense, total", "figure",
    "difference",
)  # fmt: skip


def choose_rows(names: Sequence[str]) -> tuple[Row, ...]:
    """The rows of some recipes, or all of them where none is named.

    Raises:
        RecipeError: A recipe has no row.
    """
    known = {row.recipe: row for row in ROWS}
    for name in names:
        if name not in known:
            raise RecipeError(
                f"budgets: found recipe {name!r}{nearest(name, known)}; accepted: {', '.join(known)}"
            )
    return tuple(known[name] for name in names) or ROWS


def budgets_page(rows: Sequence[Row]) -> str:
    """Return the page in Markdown.

    Args:
        rows: Recipes, those for one model beside each other.

    Raises:
        SdtmFxError: What `count_budget` raises.
    """
    parts = [_HEAD]
    for shape, group in itertools.groupby(rows, key=lambda row: shape_of(row.recipe)):
        parts.append("\n".join(_section(shape, tuple(group))) + "\n")
    parts.append("\n".join(["## What is not there", "", "| what | why |", "|---|---|", *_absent()]) + "\n")
    return "\n".join(parts)


def _section(shape: str, rows: Sequence[Row]) -> Iterator[str]:
    model, published, dense = build_shape(shape), PUBLISHED[shape], None
    lines = []
    for row in rows:
        recipe = load_recipe(row.recipe)
        budget = count_budget(recipe, shape, model, row.steps, PIXELS, dense)
        dense = budget.dense
        lines.append(_line(row, recipe, budget))
    yield f"## {shape}"
    yield ""
    yield f"Dense: {_tera(dense)} T, with {published.text} text tokens and {_halves(published.halves)}."
    yield ""
    yield "| " + " | ".join(_COLUMNS) + " |"
    yield "|" + "---|" * len(_COLUMNS)
    yield from lines


def _line(row: Row, recipe: Recipe, budget: Budget) -> str:
    methods = dict.fromkeys(f"`{stage.method.name}`" for stage in recipe.stages)
    least = "" if budget.decided else "at least "
    figure, difference = "", ""
    if row.figure is not None:
        macs = budget.last if row.figure.last else budget.macs
        reached = macs.linear / budget.dense.linear if row.figure.linear else macs.total / budget.dense.total
        figure, difference = row.figure.text, f"{reached / row.figure.share - 1:+.1%}"
    cells = (
        f"`{row.recipe}`",
        ", ".join(methods),
        str(row.steps),
        f"{least}{budget.macs.linear / 1e12:.2f} T",
        f"{least}{budget.macs.total / 1e12:.2f} T",
        f"{budget.linear:.3f}",
        f"{budget.total:.3f}",
        figure,
        difference,
    )
    return "| " + " | ".join(cells) + " |"


def _absent() -> Iterator[str]:
    for what, why in ABSENT:
        yield f"| {what} | {why} |"


def _tera(macs: Macs | None) -> str:
    assert macs is not None  # every section has a row
    return f"{macs.linear / 1e12:.2f} and {macs.total / 1e12:.2f}"


def _halves(number: int) -> str:
    return "both guidance halves" if number == 2 else "one call without guidance"
