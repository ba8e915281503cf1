"""How much quality each part of the model gives for its MACs when it is computed whole again."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.spans import uses_spans
from sdtm_fx.tuning.pricing import Pricing
from sdtm_fx.tuning.setting import Setting


@dataclass(frozen=True)
class Part:
    """What may be computed whole by itself: a site in one stage, or a group of blocks in every step.

    Attributes:
        label: What it is called in tables.
        stage: Number of the stage of a site.
        site: The site; None for blocks.
        blocks: Blocks, by number; empty for a site.
    """

    label: str
    stage: int = 0
    site: str | None = None
    blocks: tuple[int, ...] = ()

    def whole(self, setting: Setting) -> Setting | None:
        """The setting with this part computed whole; None where it is already, or would leave a stage no site."""
        if self.site is None:
            whole = tuple(sorted({*setting.whole, *self.blocks}))
            return None if whole == setting.whole else replace(setting, whole=whole)
        left = tuple(site for site in setting.sites[self.stage] if site != self.site)
        if not left or left == setting.sites[self.stage]:
            return None
        own = tuple(left if at == self.stage else sites for at, sites in enumerate(setting.sites))
        return replace(setting, sites=own)


@dataclass(frozen=True)
class Sensitivity:
    """What one part gives, and takes, when it alone is computed whole again.

    Attributes:
        part: The part.
        gain: Mean quality gained on the images of the search.
        share: What it costs, as a part of the MACs of a dense generation; above 0.
    """

    part: Part
    gain: float
    share: float

    @property
    def rate(self) -> float:
        """Quality gained for each percent of the dense MACs."""
        return self.gain / (100 * self.share)


def parts_of(recipe: Recipe, groups: Sequence[tuple[int, ...]]) -> list[Part]:
    """All parts: every site of every stage, and every group of blocks, unless spans forecast them as one.

    Args:
        recipe: The recipe that settings are said in.
        groups: Groups of blocks, by number.
    """
    sites = [
        Part(f"{site} in stage {stage.name}", number, site)
        for number, stage in enumerate(recipe.stages)
        for site in stage.sites
    ]
    if len(groups) < 2 or uses_spans(recipe):
        return sites
    return [*sites, *(Part(_blocks_label(group), blocks=group) for group in groups)]


def measure_sensitivities(
    setting: Setting,
    quality: Sequence[float],
    pricing: Pricing,
    parts: Sequence[Part],
    judge: Callable[[Sequence[Recipe]], Sequence[Sequence[float]]],
) -> list[Sensitivity]:
    """Draw a setting again with one part after another computed whole, whatever that costs.

    Args:
        setting: Where to measure.
        quality: Its quality, image by image.
        pricing: What settings cost.
        parts: What is computed whole.
        judge: Draws and measures.

    Returns:
        One of each part that costs anything, the highest rate first.
    """
    before = 1 / pricing.price(setting)
    changed = [(part, whole) for part in parts if (whole := part.whole(setting)) is not None]
    costing = [(part, w, share) for part, w in changed if (share := 1 / pricing.price(w) - before) > 0]
    judged = judge([pricing.recipe(whole) for _, whole, _ in costing])
    found = [
        Sensitivity(part, statistics.fmean(values) - statistics.fmean(quality), share)
        for (part, _, share), values in zip(costing, judged, strict=True)
    ]
    return sorted(found, key=lambda one: -one.rate)


def relieved(setting: Setting, pricing: Pricing, sensitivities: Sequence[Sensitivity]) -> Iterator[Setting]:
    """Settings at the budget whose one, two, ... most sensitive parts are computed whole, paid for elsewhere.

    Args:
        setting: Where the sensitivities were measured.
        pricing: The budget and what settings cost.
        sensitivities: The highest rate first; parts that gain nothing are left as they are.
    """
    every = {block for one in sensitivities for block in one.part.blocks}
    for one in sensitivities:
        whole = one.part.whole(setting) if one.gain > 0 else None
        if whole is None or (every and every <= {*whole.whole}):
            continue
        setting = whole
        paid = _paid(setting, pricing)
        if paid is not None:
            yield paid


def _paid(setting: Setting, pricing: Pricing) -> Setting | None:
    """At the budget by its fractions, or with fewer dense steps of the same pattern; None: not even with the least."""
    for count in range(len(setting.dense), setting.least_dense - 1, -1):
        kept = tuple(setting.dense[number * len(setting.dense) // count] for number in range(count))
        fitted = pricing.fit(replace(setting, dense=kept))
        if fitted is not None:
            return fitted
    return None


def _blocks_label(group: tuple[int, ...]) -> str:
    return f"block {group[0]}" if len(group) == 1 else f"blocks {group[0]} to {group[-1]}"
