"""How large a fraction of the image tokens is removed at each denoising step."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from sdtm_fx.recipe.part import Part, Removed

Levels: TypeAlias = Annotated[int, Field(ge=1, le=64)]


class CurveRatio(Part):
    """A ratio that moves from `start` to `end` over the denoising steps.

    ``cosine`` is a quarter wave: ``r_t = end + (start - end) * cos(pi * t / (2 * (T - 1)))`` (the released
    SDTM code); ``linear`` a straight line.
    """

    curve: Literal["cosine", "linear"]
    """Shape of the curve."""
    start: Removed
    """Fraction of the image tokens removed at the first step."""
    end: Removed
    """Fraction removed at the last step."""
    levels: Levels = 4
    """Most distinct ratios used: every level is one compiled phase."""


class ConstantRatio(Part):
    """The same ratio at every step."""

    curve: Literal["constant"]
    """Shape of the curve."""
    start: Removed
    """Fraction of the image tokens removed."""

    @property
    def end(self) -> float:
        """Fraction removed at the last step: the same."""
        return self.start

    @property
    def levels(self) -> int:
        """Number of distinct ratios: one."""
        return 1


class ListRatio(Part):
    """Ratios written out, spread evenly over the denoising steps."""

    curve: Literal["list"]
    """Shape of the curve."""
    values: Annotated[tuple[Removed, ...], Field(min_length=1)]
    """Fractions removed, from the first step to the last."""
    levels: Levels = 4
    """Most distinct ratios used: every level is one compiled phase."""

    @property
    def start(self) -> float:
        """Fraction removed at the first step."""
        return self.values[0]

    @property
    def end(self) -> float:
        """Fraction removed at the last step."""
        return self.values[-1]


class FullRatio(Part):
    """As many tokens as the method of the stage can remove on the grid at hand, at every step."""

    curve: Literal["full"]
    """Shape of the curve. Kept counts are what they are: `plan.round_to` does not apply."""


class ThresholdRatio(Part):
    """SDTM*: what scores at least `threshold` is removed, between two bounds."""

    threshold: Annotated[float, Field(ge=-1, le=2)]
    """Score from which a window is merged (a mean cosine, plus the age term of the method)."""
    start: Removed
    """Most that is removed, whatever the scores."""
    end: Removed = 0.0
    """Least that is removed, whatever the scores."""
    levels: Levels = 4
    """Number of ratios between the bounds to choose from: every level is one compiled phase."""


def ratio_tag(ratio: object) -> str | None:
    """Name the alternative that a ratio is written as, or None when it names none."""
    if isinstance(ratio, Part):
        return _TAGS.get(type(ratio))
    if not isinstance(ratio, dict):
        return None
    if "curve" in ratio:
        curve = ratio["curve"]
        return _TAG_OF_CURVE.get(curve) if isinstance(curve, str) else None
    return "<threshold>" if "threshold" in ratio else None


_TAGS: dict[type, str] = {
    CurveRatio: "<curve>",
    ConstantRatio: "<constant>",
    ListRatio: "<list>",
    FullRatio: "<full>",
    ThresholdRatio: "<threshold>",
}
_TAG_OF_CURVE = {
    "cosine": "<curve>",
    "linear": "<curve>",
    "constant": "<constant>",
    "list": "<list>",
    "full": "<full>",
}

Ratio: TypeAlias = Annotated[
    Annotated[CurveRatio, Tag("<curve>")]
    | Annotated[ConstantRatio, Tag("<constant>")]
    | Annotated[ListRatio, Tag("<list>")]
    | Annotated[FullRatio, Tag("<full>")]
    | Annotated[ThresholdRatio, Tag("<threshold>")],
    Discriminator(ratio_tag),
]


def peak(ratio: Ratio) -> float | None:
    """Return the largest fraction that a ratio ever asks to remove; None where the method says it."""
    if isinstance(ratio, FullRatio):
        return None
    return max(ratio.values) if isinstance(ratio, ListRatio) else max(ratio.start, ratio.end)
