"""What the ratio of a stage demands of its method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sdtm_fx.grids import tokens_on
from sdtm_fx.methods import METHODS, SSM, Method, Skip
from sdtm_fx.recipe.check_tokens import windows_of
from sdtm_fx.recipe.problems import KeyPath, Problem, misfit
from sdtm_fx.recipe.ratio import Ratio, ThresholdRatio, peak
from sdtm_fx.recipe.tokens import FixedGrid

if TYPE_CHECKING:
    from sdtm_fx.recipe.schema import Recipe

# A grid that common windows divide: what a method can remove of it is what it can remove at best.
_EVEN_GRID = (840, 840, 840)
_TOLERANCE = 1e-9


def check_ratios(recipe: Recipe) -> Iterator[Problem]:
    """Check that every stage can remove what its ratio asks for."""
    for index, stage in enumerate(recipe.stages):
        own: KeyPath = ("stages", index, "ratio")
        path, ratio = (own, stage.ratio) if stage.ratio is not None else (("ratio",), recipe.ratio)
        if isinstance(stage.method, Skip):
            if stage.ratio is not None:
                yield misfit(own, "a ratio beside method skip", "no ratio: skip removes every token")
            continue
        yield from _check_reach(path, ratio, stage.method, recipe, stage.name)
        coarse = [site.id for site in recipe.sites if site.id in stage.sites and site.downsample > 1]
        if isinstance(ratio, ThresholdRatio) and coarse:
            found = (
                f"a threshold in stage {stage.name!r}, whose site {coarse[0]!r} has tokens of its own size"
            )
            yield misfit(path, found, "a threshold only where all tokens are those of `tokens.grid`")


def _check_reach(
    path: KeyPath, ratio: Ratio, method: Method, recipe: Recipe, stage: str
) -> Iterator[Problem]:
    tokens = recipe.tokens
    if windows_of(method) is not None and not tokens.has_frames:
        return  # said elsewhere
    fixed = tokens.grid.grid if isinstance(tokens.grid, FixedGrid) else None
    size = fixed or _EVEN_GRID[-3 if tokens.has_frames else -2 :]
    most, wanted = method.capacity(size) / tokens_on(size), peak(ratio)
    if wanted is not None and wanted > most + _TOLERANCE:
        reach = f"at most {most:.4g}, which is what {method.name} can remove in stage {stage!r}"
        yield misfit(
            path, f"a ratio of up to {wanted:g}", f"{reach} (give the stage its own ratio or window)"
        )
    if isinstance(ratio, ThresholdRatio):
        counting = [name for name, kind in METHODS.items() if kind.count_above is not Method.count_above]
        accepted = f"a threshold only for methods that score what they merge: {', '.join(counting)}"
        if method.name not in counting:
            yield misfit(path, f"a threshold for method {method.name}", accepted)
        elif isinstance(method, SSM) and method.select != "similar":
            found = f"a threshold for windows that are selected as {method.select!r}"
            yield misfit(path, found, "ssm with select 'similar', whose windows have a score to compare")
