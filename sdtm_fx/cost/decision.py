"""What the cost gate has decided for one size of generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sdtm_fx.cost.profile import DeviceProfile
from sdtm_fx.grids import TokenGrid
from sdtm_fx.phase import Schedule
from sdtm_fx.runtime.call import Variant

Level = tuple[int, int]
"""Index of a stage, and tokens removed."""


@dataclass(frozen=True)
class SiteVerdict:
    """What the gate says about one site of one block.

    Attributes:
        stage: Index of the stage.
        removed: Tokens removed at merged sites.
        block: Module path of the block.
        site: Id of the site, or of the span that the block is in.
        saved: Seconds per call that merging it is predicted to save, beside the sites that stay.
        spent: Seconds per call that it is predicted to cost: merge, unmerge, forecast, and the plan where no
            other site needs it.
        kept: Whether it is merged.
    """

    stage: int
    removed: int
    block: str
    site: str
    saved: float
    spent: float
    kept: bool


@dataclass(frozen=True)
class GateDecision:
    """What the gate decided for one size of generation.

    Attributes:
        profile: What the prediction is based on.
        verdicts: Every site of every phase that merges or skips, before the gate.
        schedule: The schedule, without the phases in which nothing is left to merge.
        merges: Per level, the variants of blocks that leave sites out, by module path.
        stores: The same of dense steps, per stage that features are stored for.
    """

    profile: DeviceProfile
    verdicts: tuple[SiteVerdict, ...]
    schedule: Schedule
    merges: Mapping[Level, Mapping[str, Variant]]
    stores: Mapping[int, Mapping[str, Variant]]

    def variants(self, variant: Variant | None, remove: int) -> Mapping[str, Variant]:
        """The blocks that run another variant than the call, by module path."""
        if variant is None or variant.measure is not None:
            return {}
        if variant.stage is not None:
            return self.merges.get((variant.stage, remove), {})
        return {} if variant.refresh is None else self.stores.get(variant.refresh, {})


@dataclass(frozen=True)
class GateSize:
    """What a decision is for.

    Attributes:
        grid: (height, width) in tokens.
        text: Text tokens.
        batch: Samples per call, CFG halves counted.
        dtype: What is computed in.
        references: Tokens of reference images.
    """

    grid: TokenGrid
    text: int
    batch: int
    dtype: torch.dtype
    references: int = 0
