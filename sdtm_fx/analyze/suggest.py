"""A heuristic for stage boundary and ratios, from how redundancy and detail change over the steps.

It is a starting point for measurements of quality, not a substitute: nothing here has seen an image.

Boundary. What the blocks add (`Analysis.update`) is averaged over images and blocks, for every step but the
first and the last, which recipes keep dense. A curve x_0 .. x_{n-1} is split into two parts of constant value:
the split s maximises s (n - s) / n · (mean(x_s ..) - mean(.. x_{s-1}))², the variance between the parts, among
the splits at which the mean moves as in a structure-then-detail process: the detail share up (low frequencies
stop dominating), the similarity down (redundancy falls). Between over total variance says how much of the curve
the split explains; below `LEAST_EXPLAINED` it does not count. The boundary is the mean of the splits that count,
as a fraction of the steps. None counts: no boundary is suggested. The same without each image in turn says how
far the answer hangs on the images.

Ratios. Windows are ranked by their mean pairwise cosine. For each block the threshold is chosen above which,
over all steps together, as many windows lie as it takes to remove the wanted ratio on average; the ratio of a
step is what lies above those thresholds in it, mean over images and blocks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdtm_fx.analyze.result import Analysis, Array, Features
from sdtm_fx.errors import SdtmFxError
from sdtm_fx.recipe.extend import path_beside
from sdtm_fx.recipe.load import list_recipes, load_recipe
from sdtm_fx.recipe.siblings import sibling
from sdtm_fx.windows import Windows

LEAST_EXPLAINED = 0.5
"""Share of the variance over the steps that a split must explain to count."""


@dataclass(frozen=True)
class Split:
    """Where a curve over the steps changes.

    Attributes:
        step: First step of the second part.
        before: Mean of the first part.
        after: Mean of the second part.
        explained: Variance between the parts over the variance of the curve, 0 to 1.
    """

    step: int
    before: float
    after: float
    explained: float

    @property
    def counts(self) -> bool:
        """Whether the split explains enough."""
        return self.explained >= LEAST_EXPLAINED


@dataclass(frozen=True)
class WindowCost:
    """What it costs to look for partners inside windows only.

    Attributes:
        edge: Edge of the window, in tokens.
        before: (1 - best cosine inside) / (1 - best cosine anywhere), both means over tokens, images, blocks
            and the first part of the steps.
        after: The same over the second part.
    """

    edge: int
    before: float
    after: float


@dataclass(frozen=True)
class Suggestion:
    """The heuristic's answer; see the module's text for its formulas.

    Attributes:
        steps: Number of denoising steps that it was made for.
        by_detail: Split of the detail share; None where it rises at no split.
        by_redundancy: Split of the similarity; None where it falls at no split.
        until: Fraction of the steps at which the first stage should end, or None.
        left_out: The same without each of the images in turn: how little it takes to move it.
        ratios: Fraction of image tokens to remove at every step.
        structure_ratio: Mean of `ratios` before the boundary; before the middle where there is none.
        detail_ratio: Mean of `ratios` after it.
        windows: For each window size.
    """

    steps: int
    by_detail: Split | None
    by_redundancy: Split | None
    until: float | None
    left_out: tuple[float | None, ...]
    ratios: tuple[float, ...]
    structure_ratio: float
    detail_ratio: float
    windows: tuple[WindowCost, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def as_recipe(self, base: str, folder: Path = Path()) -> dict[str, Any] | None:
        """What a recipe file would hold that takes the suggestion over.

        Args:
            base: The recipe to extend: a shipped name, or a path. A shipped one that merges in no stage stands for
                the one of its name that does, ``-merge`` or ``-windows``.
            folder: Where the file will be; it names another file as seen from there.

        Returns:
            The mapping, without ratios for stages that skip; None where no boundary is suggested, or the base is
            neither shipped nor a file, or has not two stages of which one merges.
        """
        is_file = Path(base).is_file()
        if self.until is None or not (is_file or base in list_recipes()):
            return None
        recipe = load_recipe(base)
        if not is_file and not any(stage.method.merges for stage in recipe.stages):
            base = sibling(base, "merge", "windows") or base
            recipe = load_recipe(base)
        if len(recipe.stages) != 2 or not any(stage.method.merges for stage in recipe.stages):
            return None
        first, second = recipe.stages
        ratios = {first.name: self.structure_ratio, second.name: self.detail_ratio}
        changes: dict[str, dict[str, Any]] = {
            stage.name: {"ratio": _constant(ratios[stage.name])} if stage.method.merges else {}
            for stage in recipe.stages
        }
        changes[first.name] = {"until": round(self.until, 2), **changes[first.name]}
        return {
            "version": 1,
            "name": f"{recipe.name.rpartition('/')[2]}-suggested",
            "description": "By sdtm-fx analyze, a heuristic on features; judge it by images.",
            "extends": path_beside(Path(base), folder) if is_file else base,
            "stages": {name: change for name, change in changes.items() if change},
        }


def suggest(analysis: Analysis, *, ratio: float = 0.5) -> Suggestion:
    """Suggest a stage boundary and ratios; a heuristic, see the module's text.

    Args:
        analysis: Of at least 4 steps.
        ratio: Fraction of the image tokens to remove, on average over the steps.

    Raises:
        SdtmFxError: Too few steps, or windows cannot remove that much.
    """
    if analysis.steps < 4:
        raise SdtmFxError(f"analyze: found {analysis.steps} steps; a suggestion needs at least 4")
    update, images = analysis.update, range(analysis.images)
    by_detail, by_redundancy, until = _boundary(update, list(images))
    left_out = [[i for i in images if i != gone] for gone in images] if analysis.images > 1 else []
    ratios = spread_ratio(analysis, ratio)
    boundary = analysis.steps // 2 if until is None else round(until * analysis.steps)
    return Suggestion(
        steps=analysis.steps,
        by_detail=by_detail,
        by_redundancy=by_redundancy,
        until=until,
        left_out=tuple(_boundary(update, kept)[2] for kept in left_out),
        ratios=tuple(float(r) for r in ratios),
        structure_ratio=float(ratios[:boundary].mean()),
        detail_ratio=float(ratios[boundary:].mean()),
        windows=tuple(
            WindowCost(
                edge, _dissimilarity(update, w, 0, boundary), _dissimilarity(update, w, boundary, None)
            )
            for w, edge in enumerate(analysis.settings.windows)
        ),
    )


def _boundary(features: Features, images: list[int]) -> tuple[Split | None, Split | None, float | None]:
    """Both splits, and the mean of those that count as a fraction of the steps, from some of the images."""
    detail, similarity = (x[images].mean(axis=(0, 2)) for x in (features.detail, features.similarity))
    by_detail = split(detail[1:-1], rising=True, first=1)
    by_redundancy = split(similarity[1:-1], rising=False, first=1)
    counted = [s.step for s in (by_detail, by_redundancy) if s is not None and s.counts]
    return by_detail, by_redundancy, sum(counted) / len(counted) / len(detail) if counted else None


def _dissimilarity(features: Features, window: int, start: int, end: int | None) -> float:
    """Of the best partner inside a window, over that of the best anywhere; 1 where all tokens are equal."""
    inside = 1 - features.inside[:, start:end, :, window].mean()
    anywhere = inside - features.gap[:, start:end, :, window].mean()
    return float(inside / anywhere) if anywhere > 0 else 1.0


def split(curve: Array, *, rising: bool, first: int = 0) -> Split | None:
    """Split a curve into two parts of constant value, in least squares.

    Args:
        curve: At least one value.
        rising: Whether the second part must lie above the first, or below.
        first: Step of the first value.

    Returns:
        The best split at which the mean moves that way, the first of equals; None where there is none.
    """
    total = float(((curve - curve.mean()) ** 2).sum())
    best: Split | None = None
    for place in range(1, len(curve)):
        before, after = float(curve[:place].mean()), float(curve[place:].mean())
        if total == 0 or (after > before) != rising or after == before:
            continue
        between = place * (len(curve) - place) / len(curve) * (after - before) ** 2
        if best is None or between / total > best.explained:
            best = Split(first + place, before, after, min(between / total, 1.0))
    return best


def spread_ratio(analysis: Analysis, ratio: float) -> Array:
    """Spread a mean ratio over the steps, after how alike the tokens of windows are.

    Args:
        analysis: The analysis.
        ratio: Fraction of the image tokens to remove, on average over the steps.

    Returns:
        [S] fractions removed.

    Raises:
        SdtmFxError: Windows cannot remove that much.
    """
    edge = analysis.settings.merge_window
    windows = Windows(analysis.grid, (edge, edge))
    reach = windows.count * (windows.size - 1) / (analysis.grid[0] * analysis.grid[1])
    if not 0 < ratio < reach:
        raise SdtmFxError(
            f"analyze: ratio {ratio:g}; accepted: above 0 and below {reach:.3g}, which is what windows of "
            f"{edge} x {edge} remove at most on {analysis.grid[0]} x {analysis.grid[1]} tokens"
        )
    scores = analysis.update.quantiles  # evenly spaced quantiles stand for the windows
    thresholds = np.quantile(scores, 1 - ratio / reach, axis=(0, 1, 3), keepdims=True)
    above: Array = (scores > thresholds).mean(axis=(0, 2, 3)) * reach
    return above


def _constant(ratio: float) -> dict[str, Any]:
    return {"curve": "constant", "start": round(ratio, 2)}
