"""What merging inside of spans demands of the other parts of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sdtm_fx.errors import nearest
from sdtm_fx.methods import Method, ToFu
from sdtm_fx.recipe.check_keys import keyed_sites
from sdtm_fx.recipe.check_tokens import windows_of
from sdtm_fx.recipe.inside import InsideSpec
from sdtm_fx.recipe.problems import KeyPath, Problem, misfit, show_choices

if TYPE_CHECKING:
    from sdtm_fx.recipe.schema import Recipe

_ROW = (1, 840)  # slots that common cells divide
_TOLERANCE = 1e-9
_GRIDLESS = "random, or tome, tofu, ca_tome, sito or fidm with window [1, n]: every n slots in their order"


def check_inside(recipe: Recipe) -> Iterator[Problem]:
    """Yield every contradiction between what merges inside of spans and the rest of the recipe."""
    spans = [span.id for span in recipe.spans]
    for index, stage in enumerate(recipe.stages):
        if stage.inside is None:
            continue
        path: KeyPath = ("stages", index, "inside")
        if not set(spans) & set(stage.sites):
            yield misfit(
                path,
                f"merging inside of spans in stage {stage.name!r}, which has none among its sites",
                "inside beside a span in `sites`",
            )
        yield from _check_sites((*path, "sites"), recipe, stage.inside, spans)
        coarse = [site for site in recipe.sites if site.downsample > 1]
        if coarse:
            yield misfit(
                path,
                f"merging inside of spans beside site {coarse[0].id!r}, whose tokens lie on a grid of their own",
                "sites with downsample 1: slots inside of a span are counted on one grid",
            )
        if not stage.method.assigns:
            yield misfit(
                path,
                f"merging inside of spans whose method {stage.method.name} mixes slots",
                "a method of the stage under which every token has one slot: others have no sizes to count by",
            )
        yield from _check_method((*path, "method"), stage.inside.method)
        yield from _check_ratio((*path, "ratio"), stage.inside)
        yield from _check_reduce((*path, "reduce"), recipe, stage.inside)
        if recipe.plan.keeps_plans:
            yield misfit(
                ("plan", "every_steps"),
                f"plans that are kept over steps beside inside in stage {stage.name!r}",
                "every_steps 1: plans inside of a span are made at every step",
            )


def _check_sites(path: KeyPath, recipe: Recipe, inside: InsideSpec, spans: list[str]) -> Iterator[Problem]:
    known = [site.id for site in recipe.sites]
    for position, site in enumerate(inside.sites):
        if site in spans:
            yield misfit((*path, position), f"the span {site!r}", "sites: spans do not lie inside of spans")
        elif site not in known:
            yield misfit(
                (*path, position), f"the unknown site {site!r}", show_choices(known), nearest(site, known)
            )
        elif site in inside.sites[:position]:
            yield misfit((*path, position), f"{site!r} a second time", "each site once")


def _check_method(path: KeyPath, method: Method) -> Iterator[Problem]:
    if not method.merges:
        yield misfit(path, f"{method.name} inside of a span, which merges nothing", _GRIDLESS)
    elif method.caches:
        yield misfit(path, f"{method.name} inside of a span, where nothing is stored", _GRIDLESS)
    elif not method.assigns:
        yield misfit(
            path,
            f"{method.name} inside of a span, which mixes slots: means of slots of several sizes have no weights there",
            _GRIDLESS,
        )
    elif method.wants():
        what = ", ".join(sorted(method.wants()))
        yield misfit(
            path, f"{method.name} inside of a span, which reads {what} of tokens; slots have none", _GRIDLESS
        )
    else:
        why = method.needs_grid()
        if why is not None:
            yield misfit(path, f"{method.name} inside of a span, where there is no grid: {why}", _GRIDLESS)


def _check_reduce(path: KeyPath, recipe: Recipe, inside: InsideSpec) -> Iterator[Problem]:
    reduce = inside.reduce or (inside.method.reduce if isinstance(inside.method, ToFu) else None)
    keyed = [site for site in inside.sites if site in keyed_sites(recipe)]
    if reduce == "mlerp" and keyed:
        yield misfit(
            path,
            f"'mlerp' at {keyed[0]!r}, of which only keys are merged, head by head",
            "'mean' or 'prune' there",
        )


def _check_ratio(path: KeyPath, inside: InsideSpec) -> Iterator[Problem]:
    if windows_of(inside.method) is not None:
        return  # said elsewhere
    most = inside.method.capacity(_ROW) / _ROW[1]
    if inside.method.needs_grid() is None and inside.ratio > most + _TOLERANCE:
        yield misfit(
            path,
            f"a ratio of {inside.ratio:g}",
            f"at most {most:.4g}, which is what {inside.method.name} can remove",
        )
