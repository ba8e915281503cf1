"""One call of the rewritten model, as its blocks see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from sdtm_fx.base_plan import Plan
from sdtm_fx.grids import TokenGrid, coarser, tokens_on
from sdtm_fx.methods.base import Method
from sdtm_fx.phase import Phase
from sdtm_fx.reductions import Reduce
from sdtm_fx.runtime.inside import Inside
from sdtm_fx.runtime.state import BranchState

PlanKey = int | tuple[int, int]
"""What plans of a call are known by: their group, and inside of a span also the block in which it begins."""


@dataclass(frozen=True)
class Variant:
    """Which graph of a block runs: one per stage, and one for dense steps that have something to do.

    Attributes:
        stage: Index of the stage whose sites are merged or skipped; None for a dense step.
        refresh: On a dense step, the stage that features are stored for.
        measure: A dense step that counts what lies above the threshold of this stage (SDTM*).
        left_out: Sites, by id, that the cost gate leaves dense; on a dense step, that store nothing.
    """

    stage: int | None
    refresh: int | None = None
    measure: int | None = None
    left_out: frozenset[str] = frozenset()
    key: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Write the key: torch 2.8 compiles no dictionary with such objects in it as keys."""
        without = ",".join(sorted(self.left_out))
        object.__setattr__(self, "key", f"{self.stage} {self.refresh} {self.measure} {without}")


@dataclass(frozen=True)
class Call:
    """What all blocks of one model call share.

    Attributes:
        variant: The graphs to run; None when this step changes nothing at all.
        phase: The phase of the schedule.
        method: The stage's method, None on dense steps.
        grid: (height, width) of the tokens that may be merged, behind their frames where there are some.
        halves: CFG halves in the batch that share one plan (1: every sample has its own).
        share_batch: One plan for the whole batch.
        every_layers: Blocks per plan group.
        keep_plans: Whether a later step reuses the plans of this one.
        one_age_counter: One age counter for all groups, advanced at every plan (the released form).
        advance_ages: Whether this call is the first of its step; ages count steps.
        state: What the branch keeps across steps.
        forecast_order: 0 or 1.
        forecast_weight: Share of the new value at merged positions.
        threshold: Score above which windows merge (SDTM*), or None.
        salt: 0-d int64 tensor for hash-based draws, or None.
        prompt_bias: 0-d float tensor added to the logits of text keys, or None.
        removes: Tokens that a block removes, by its number, where that is not what the phase does.
        levels: Side of a block's tokens over that of the grid's, by its number, where it is not 1.
        reduce: What becomes of the tokens of a slot; None: as the method has it.
        reduces: The same by number of the block, where a rule of the recipe says so.
        updates_tokens: Whether steps that merge store what they computed for tokens that are alone in their slot.
        gated: Variants of the blocks in which the cost gate leaves sites out, by module path.
        gated_stores: What these blocks run where they have no features yet, by module path.
        inside: What sites inside of spans merge, None where they merge nothing.
        protected_frames: Frames in front of the grid that are never merged.
        references: Tokens of reference images, which follow those of the image and are never merged.
    """

    variant: Variant | None
    phase: Phase
    method: Method | None
    grid: TokenGrid
    halves: int
    share_batch: bool
    every_layers: int
    keep_plans: bool
    one_age_counter: bool
    advance_ages: bool
    state: BranchState
    forecast_order: int
    forecast_weight: float
    threshold: float | None
    salt: torch.Tensor | None
    prompt_bias: torch.Tensor | None
    removes: Mapping[int, int] = field(default_factory=dict)
    levels: Mapping[int, int] = field(default_factory=dict)
    reduce: Reduce | None = None
    reduces: Mapping[int, Reduce] = field(default_factory=dict)
    updates_tokens: bool = False
    gated: Mapping[str, Variant] = field(default_factory=dict)
    gated_stores: Mapping[str, Variant] = field(default_factory=dict)
    inside: Inside | None = None
    protected_frames: int = 0
    references: int = 0

    @property
    def dates_tokens(self) -> bool:
        """Whether every token has steps of its own that its line is drawn through."""
        return self.updates_tokens and self.forecast_order == 1

    def reads(self, what: str) -> bool:
        """Whether the stage's method may read something beside the tokens, for instance "ages"."""
        return self.method is not None and what in self.method.needs

    def removed_in(self, group: int) -> int:
        """Tokens that the blocks of a plan group remove; rules see to it that they agree."""
        first = group * self.every_layers
        own = (
            self.removes[block] for block in range(first, first + self.every_layers) if block in self.removes
        )
        return next(own, self.phase.remove)

    def grid_in(self, group: int) -> TokenGrid:
        """(height, width) in tokens of the blocks of a plan group; it is seen to that they agree."""
        return coarser(self.grid, self.levels.get(group * self.every_layers, 1))


@dataclass(frozen=True)
class OpenSpan:
    """A span of merged tokens that was entered and not left yet.

    Attributes:
        plan: Its plan, over the image tokens that may be merged.
        stream: [B, N, D], the image tokens where it began; None where nothing of them is added again.
        entry: The block in which it began.
        before: Protected image tokens in front of those that may be merged.
        behind: Tokens of references, which follow them.
    """

    plan: Plan
    stream: torch.Tensor | None
    entry: int = 0
    before: int = 0
    behind: int = 0

    @property
    def placed(self) -> Plan:
        """The plan over the whole image stream."""
        return self.plan.placed(self.before, self.behind) if self.before or self.behind else self.plan

    @property
    def kept(self) -> int:
        """Tokens of the image stream inside of the span."""
        return self.before + self.plan.kept + self.behind


@dataclass(frozen=True)
class OpenStream:
    """A span that is forecast, or stored for, and was entered in this call.

    Attributes:
        tokens: [B, N, D], the image stream where it began.
    """

    tokens: torch.Tensor


@dataclass(frozen=True)
class BlockContext:
    """The first argument of every rewritten block graph.

    Attributes:
        call: The model call in progress.
        block: Index of the block, in the order of execution.
        planned: Plans made in this call; blocks of a group share one.
        spans: Spans that were entered in this call and not left yet, by id.
        draw: 0-d int64 tensor that stands for the group in hash-based draws; None: the number of the group itself.
    """

    call: Call
    block: int
    planned: dict[PlanKey, object]
    draw: torch.Tensor | None = None
    spans: dict[str, OpenSpan | OpenStream] = field(default_factory=dict)

    @property
    def group(self) -> int:
        """The plan group of the block."""
        return self.block // self.call.every_layers

    @property
    def grid(self) -> TokenGrid:
        """(height, width) in tokens of the block."""
        return coarser(self.call.grid, self.call.levels.get(self.block, 1))

    @property
    def before(self) -> int:
        """Protected image tokens in front of those that may be merged."""
        return self.call.protected_frames * tokens_on(self.grid[-2:])

    @property
    def behind(self) -> int:
        """Tokens of references behind those that may be merged."""
        return self.call.references

    @property
    def remove(self) -> int:
        """Tokens that the block removes at each site."""
        return self.call.removes.get(self.block, self.call.phase.remove)

    @property
    def reduce(self) -> Reduce | None:
        """What the block makes of a slot; None: as the method has it."""
        return self.call.reduces.get(self.block, self.call.reduce)
