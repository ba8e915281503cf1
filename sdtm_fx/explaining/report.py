"""The report that `explain` returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sdtm_fx.cost.counter import Macs
from sdtm_fx.grids import TokenGrid


@dataclass(frozen=True)
class SiteReport:
    """One site in one phase.

    Attributes:
        phase: Index of the phase.
        site: Id in the recipe.
        kind: ``attention`` or ``feed_forward``.
        path: Module path.
        tokens_before: Image tokens that reach the site.
        tokens_after: Image tokens that it computes, or, where keys alone are merged, whose keys it looks at.
        macs_before: Of the site's module, per call of the model.
        macs_after: The same with merging; None where it cannot be told apart from the rest of the block.
        skipped: Why the site is not merged in this phase, None where it is.
        merges: ``tokens``, or ``keys`` where queries stay as they are.
    """

    phase: int
    site: str
    kind: str
    path: str
    tokens_before: int
    tokens_after: int
    macs_before: Macs
    macs_after: Macs | None
    skipped: str | None
    merges: str = "tokens"


@dataclass(frozen=True)
class PhaseReport:
    """One phase: the steps that run it, and what a call of the model costs in it.

    Attributes:
        label: Name of the stage, or ``dense``.
        steps: The steps.
        removed: Image tokens removed at each merged site, but for blocks to which `layers` gives a part of it, and
            for those on a coarser grid.
        ratio: The same as a fraction.
        macs: Of one call of the model.
        stores: Whether features are stored for later steps.
    """

    label: str
    steps: tuple[int, ...]
    removed: int
    ratio: float
    macs: Macs
    stores: bool


@dataclass(frozen=True)
class SpanReport:
    """One run of blocks between which image tokens stay merged, or that is forecast as one, in one phase.

    Attributes:
        phase: Index of the phase.
        span: Id in the recipe.
        first: Path of the block in which it begins.
        last: Path of the block at whose end it ends.
        enter: Whether it begins at the ``start`` or the ``end`` of the first block.
        residual: ``dense`` or ``merged``, as in the recipe, or ``forecast``.
        blocks: How many blocks run on merged tokens, or do not run.
        tokens_before: Image tokens in front of it and behind it.
        tokens_after: Image tokens in it.
    """

    phase: int
    span: str
    first: str
    last: str
    enter: str
    residual: str
    blocks: int
    tokens_before: int
    tokens_after: int


@dataclass(frozen=True)
class GatedSite:
    """A site that the cost gate leaves dense in a phase.

    Attributes:
        stage: Name of the stage.
        removed: Image tokens that the phase removes at the sites that it merges.
        site: Id in the recipe.
        path: Module path.
        saved: Seconds per call that merging it is predicted to save.
        spent: Seconds per call that it is predicted to cost; the plan counts where no other site needs it.
    """

    stage: str
    removed: int
    site: str
    path: str
    saved: float
    spent: float


@dataclass(frozen=True)
class GateReport:
    """What the cost gate did.

    Attributes:
        active: Whether it had a measurement to go by.
        says: The measurement that it went by, or why it did nothing.
        sites: What it left dense. Phases in which nothing is left to merge are gone from the schedule.
    """

    active: bool
    says: str
    sites: tuple[GatedSite, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """What a rewriting does at one size; print it, or take `as_dict`.

    Attributes:
        model: Class of the model.
        recipe: Name of the recipe.
        fingerprint: Of the recipe.
        steps: Denoising steps.
        grid: Sides of the grid of the tokens that may be merged: (height, width), or (frames, height, width) without
            protected frames.
        batch: Samples per call, CFG halves counted.
        text: Text tokens.
        modules: What the model's forward calls, in order, blocks among it.
        structures: Number of rewritten block structures.
        blocks: Number of rewritten blocks.
        kept_dense: Blocks that the recipe keeps dense.
        dense: MACs of one call of the unchanged model.
        phases: The phases.
        sites: Every site in every phase.
        spans: Every span in the phases that use it.
        gate: What the cost gate left out, or why it did nothing.
        notes: What was not done, and why.
        state_bytes: Memory held across steps right now, in bytes, by purpose.
        feature_bytes: Memory that a generation will hold for forecasts, in bytes, for each call of a step: guidance
            halves that are called apart hold as much each.
        protected: Image tokens of protected frames, beside those of the grid.
        references: Tokens of reference images.
    """

    model: str
    recipe: str
    fingerprint: str
    steps: int
    grid: TokenGrid
    batch: int
    text: int
    modules: tuple[str, ...]
    structures: int
    blocks: int
    kept_dense: tuple[str, ...]
    dense: Macs
    phases: tuple[PhaseReport, ...]
    sites: tuple[SiteReport, ...]
    spans: tuple[SpanReport, ...]
    gate: GateReport
    notes: tuple[str, ...]
    state_bytes: dict[str, int]
    feature_bytes: float
    protected: int = 0
    references: int = 0

    @property
    def mean(self) -> Macs:
        """MACs of one call, averaged over the steps."""
        total = Macs()
        for phase in self.phases:
            total = total + phase.macs * len(phase.steps)
        return total * (1 / self.steps)

    @property
    def theoretical_speedup(self) -> float:
        """Total MACs of the dense model over those of the rewritten one, over all steps."""
        return self.dense.total / self.mean.total

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {**asdict(self), "mean": asdict(self.mean), "theoretical_speedup": self.theoretical_speedup}
