"""The page about the models that recipes are shipped for: what each recipe merges, and what a step costs with it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdtm_fx.bench.models import ModelClass
from sdtm_fx.cost.counter import Macs
from sdtm_fx.errors import RecipeError, nearest
from sdtm_fx.explaining.explain import explain
from sdtm_fx.explaining.report import Explanation
from sdtm_fx.explaining.shapes import PUBLISHED, TOYS, build_shape, shape_of
from sdtm_fx.recipe import list_recipes
from sdtm_fx.recipe.load import load_recipe
from sdtm_fx.rewrite import rewrite

_HEAD = """\
# Models

Every model that a recipe is shipped for. This page is written by `sdtm-fx recipes table`, from the recipes and the cost
model, on the published configurations without weights; nothing here was measured on images.

MACs are those of one denoising step, the mean over all steps of a generation, guidance halves and what finding tokens
costs included: of linear layers and convolutions alone, which is the convention of the SDTM paper, and of all products.
*Speedup* is the quotient of the latter, what merging could be worth at most. *Attention* is the part of the dense
model's products that is in no linear layer, and *left dense* what the recipe never merges: sites by name, and what lies
in no site (text, convolutions, projections around sites; some of the last follow a site that is merged).

Sizes are what a model is made for, and twice that where its positions reach so far. Models that edit are given one
reference of the size of the image.
"""

_COSTS = (
    "recipe", "px", "tokens", "dense, linear", "dense, total", "attention", "merged, linear", "merged, total",
    "speedup", "left dense",
)  # fmt: skip
_MODELS = ("recipe", "class", "published as", "blocks", "sites", "steps", "text", "halves")


@dataclass(frozen=True)
class ModelRow:
    """One recipe on its model.

    Attributes:
        recipe: Name of the recipe.
        shape: Name of the published model.
        sites: How many modules each site of the recipe has, by id.
        merged: Ids of the sites that some stage merges.
        costs: What `explain` says, by pixels of a side, or what a size is called.
    """

    recipe: str
    shape: str
    sites: dict[str, int]
    merged: frozenset[str]
    costs: dict[str, Explanation]


def family_recipes() -> tuple[str, ...]:
    """Names of the shipped recipes for published models, those after papers left out."""
    return tuple(name for name in list_recipes() if "/" not in name and shape_of(name) not in TOYS)


def choose_recipes(names: Sequence[str]) -> tuple[str, ...]:
    """The recipes that are named, or all of them where none is.

    Raises:
        RecipeError: One is not on the page.
    """
    known = family_recipes()
    for name in names:
        if name not in known:
            raise RecipeError(
                f"table: found recipe {name!r}{nearest(name, known)}; accepted: {', '.join(known)}"
            )
    return tuple(names) or known


def models_page(names: Sequence[str]) -> str:
    """Return the page in Markdown.

    Args:
        names: Recipes.

    Raises:
        SdtmFxError: What `rewrite` raises.
    """
    rows = [model_row(name) for name in names]
    return "\n".join(
        [
            _HEAD,
            *_table(_MODELS, map(_model_cells, rows)),
            "",
            "Sites in bold are merged; the others are described, so that a recipe of one's own can merge them.",
            "",
            "## What a step costs",
            "",
            *_table(_COSTS, (cells for row in rows for cells in _cost_cells(row))),
            "",
        ]
    )


def model_row(name: str) -> ModelRow:
    """Rewrite the published model with a recipe, and count what it costs at its sizes; only shapes are computed.

    Raises:
        SdtmFxError: What `rewrite` raises.
    """
    shape = shape_of(name)
    published, recipe = PUBLISHED[shape], load_recipe(name).override(gate="off")
    model = rewrite(build_shape(shape).eval(), recipe)
    costs = {}
    for size, grid in published.sized_grids.items():
        whole = (1, *grid) if recipe.tokens.has_frames and len(grid) == 2 else grid
        costs[size] = explain(
            model, steps=published.steps, grid=whole, batch=published.halves, text=published.text,
            references=published.references * math.prod(grid), quiet=True,
        )  # fmt: skip
    first = next(iter(costs.values()))
    return ModelRow(
        recipe=name,
        shape=shape,
        sites=dict(Counter(site.site for site in first.sites if site.phase == 0)),
        merged=frozenset(
            [
                *(site for stage in recipe.stages for site in stage.sites),
                *(site.site for site in first.sites if site.skipped is None),
            ]
        ),
        costs=costs,
    )


def _model_cells(row: ModelRow) -> tuple[str, ...]:
    published, first = PUBLISHED[row.shape], next(iter(row.costs.values()))
    sites = (f"**{site}** {n}" if site in row.merged else f"{site} {n}" for site, n in row.sites.items())
    build = published.build
    return (
        f"`{row.recipe}`",
        f"`{build.name}`" if isinstance(build, ModelClass) else first.model,
        published.source,
        str(first.blocks + len(first.kept_dense)),
        ", ".join(sites),
        str(published.steps),
        str(published.text or ""),
        str(published.halves),
    )


def _cost_cells(row: ModelRow) -> Iterator[tuple[str, ...]]:
    for size, told in row.costs.items():
        yield (
            f"`{row.recipe}`",
            size,
            " x ".join(map(str, told.grid if told.grid[0] > 1 else told.grid[-2:])),
            _tera(told.dense.linear),
            _tera(told.dense.total),
            f"{told.dense.attention / told.dense.total:.0%}",
            _tera(told.mean.linear),
            _tera(told.mean.total),
            f"{told.theoretical_speedup:.2f}x",
            ", ".join(_left_dense(row, told)),
        )


def _left_dense(row: ModelRow, told: Explanation) -> Iterator[str]:
    """What is never merged, as parts of all products of the dense model."""
    inside: dict[str, Macs] = defaultdict(Macs)
    for site in told.sites:
        if site.phase == 0:
            inside[site.site] = inside[site.site] + site.macs_before
    for name, macs in inside.items():
        if name not in row.merged:
            yield f"{name} {macs.total / told.dense.total:.0%}"
    outside = told.dense.total - sum(macs.total for macs in inside.values())
    if any(span.residual == "forecast" for span in told.spans):  # all of a block is, not its sites alone
        outside = min(phase.macs.total for phase in told.phases)
    yield f"no site {outside / told.dense.total:.0%}"


def _table(columns: Sequence[str], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for cells in rows:
        yield "| " + " | ".join(cells) + " |"


def _tera(macs: float) -> str:
    return f"{macs / 1e12:.3g} T"
