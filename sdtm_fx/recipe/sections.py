"""The sections of a recipe, each by itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sdtm_fx.methods import AnyMethod
from sdtm_fx.recipe.inside import InsideSpec
from sdtm_fx.recipe.part import Count, Label, Part, Positive, Text
from sdtm_fx.recipe.ratio import Ratio
from sdtm_fx.reductions import Reduce

REST = "*"
"""A `prefix` or `suffix` whose length is what the image leaves of the sequence."""


class SiteSpec(Part):
    """An attention or feed-forward module whose image tokens may be merged."""

    id: Label
    """Name that stages use."""
    kind: Literal["attention", "feed_forward"]
    """What the module computes."""
    match: Text
    """Glob over module paths (``*`` stays between dots, ``**`` does not), or ``re:`` and an expression."""
    input: Count | Text = 0
    """Argument of the module that carries the tokens: its position or its name."""
    output: Count | None = None
    """Index of the tokens in the tuple that the module returns; absent: it returns the tokens alone."""
    prefix: Text | None = None
    """Argument of the block whose length is the number of leading tokens that are not image; ``"*"``: whatever stands
    in front of the last N tokens, which are the image."""
    suffix: Text | None = None
    """Argument of the block whose length is the number of trailing tokens that are neither image nor reference;
    ``"*"``: whatever follows the first N tokens, which are the image (text, padding)."""
    rotary: Text | None = None
    """Argument of the module that carries the rotary tables (cos, sin), [sequence, channels] each. Rows beyond those
    of the image stream belong to text; they come first, or last where the site has a `suffix`."""
    rotary_axis: Count = 0
    """Axis of the rotary tables that the sequence lies along; all others are the same for every token."""
    metric: Text | None = None
    """Argument of the block that tokens are compared by, image tokens alone; absent: what reaches the module. All
    sites of a block share the plan of the first."""
    merge: Literal["tokens", "keys"] = "tokens"
    """``tokens``: the module runs on merged tokens. ``keys``: queries stay as they are, and attention looks at
    fewer image keys and values, so nothing is unmerged and `reuse` has nothing to forecast there; a mask follows."""
    downsample: Positive = 1
    """Side of a token here over that of a token of `tokens.grid`: 2 at a level of a U-Net with half the resolution. A
    side that it does not divide is rounded up."""
    call: Count | None = None
    """Which call of the module is meant where its block calls it several times, from 0; the others stay as they are.
    Absent: it is called once."""
    without: Text | None = None
    """Argument of the block that is None wherever image tokens stand where this site says; a call that gives it is
    refused. Absent: none."""
    expect: Positive | None = None
    """Exact number of modules that match; absent: at least one."""


class Stage(Part):
    """A span of denoising steps with one method and one set of sites."""

    name: Label
    """Name in reports."""
    until: Annotated[float, Field(gt=0, le=1)]
    """Fraction of the denoising steps at which the stage ends; the last stage ends at 1."""
    sites: Annotated[tuple[str, ...], Field(min_length=1)]
    """Ids of the sites and spans that are merged."""
    method: AnyMethod
    """What decides which tokens are merged, with its options."""
    ratio: Ratio | None = None
    """Ratio in this stage; absent: the ratio of the recipe."""
    reduce: Reduce | None = None
    """What becomes of the tokens of a slot; absent: as the method has it, which is their mean unless it says else."""
    inside: InsideSpec | None = None
    """What sites inside the spans of this stage merge further; absent: nothing."""


class KeepDense(Part):
    """Steps and layers that are left as they are."""

    first_steps: Count = 1
    """Number of leading steps."""
    last_steps: Count = 1
    """Number of trailing steps."""
    every_steps: Annotated[int, Field(ge=2)] | Annotated[float, Field(gt=1)] | None = None
    """Every so many steps one is dense, counted from the first; it refreshes what `reuse` needs. A fraction
    spreads dense steps evenly: with 1.5, every third step is not dense."""
    steps: tuple[Count, ...] = ()
    """Further steps, by number, counted from 0: for a recipe that is meant for one number of steps."""
    layers: tuple[int | Text, ...] = ()
    """Blocks that are never merged: indices (negative: from the end) or globs over block paths."""

    @property
    def named(self) -> frozenset[int]:
        """The dense steps that do not depend on how many steps there are, without those that `every_steps` spreads."""
        return frozenset({*range(self.first_steps), *self.steps})


class Reuse(Part):
    """What merged positions take from earlier dense steps."""

    order: Literal[0, 1]
    """0 copies the last dense step, 1 extrapolates the last two."""
    weight: Annotated[float, Field(ge=0, le=1)]
    """Share of the newly computed value at merged positions; the rest is the forecast."""
    update: Literal["dense", "tokens"] = "dense"
    """What is stored: ``dense``, the outputs of dense steps; ``tokens``, on steps in between also what was computed for
    tokens that share their slot with no other, so that each is forecast from the steps in which it was computed."""


class PlanSharing(Part):
    """How far one merge plan reaches."""

    share: tuple[Literal["cfg", "batch"], ...] = ()
    """``cfg``: one plan for both guidance halves; ``batch``: one plan for every sample."""
    every_layers: Positive = 1
    """Number of consecutive blocks that share a plan."""
    every_steps: Positive = 1
    """Number of consecutive steps that share a plan."""
    destinations_every: Positive | None = None
    """Number of consecutive steps that share the destinations of a plan, a multiple of `every_steps`: in between,
    tokens are weighed anew for the same ones. For methods that choose destinations first (`toma`); absent: as
    `every_steps`."""
    round_to: Positive = 64
    """Kept counts are multiples of this where the sequence allows."""
    ages: Literal["step", "call"] = "step"
    """Whether token ages count denoising steps, or calls of the method (the released SDTM code)."""
    proportional: bool = False
    """Proportional attention: the logarithm of the size of its slot is added to the logits of every image key, by
    an additive mask, which not all attention kernels take."""

    @property
    def keeps_plans(self) -> bool:
        """Whether some step takes over a plan, or its destinations, from a step before."""
        return (self.destinations_every or self.every_steps) > 1


class PromptWeight(Part):
    """Step-dependent weight of the text keys in attention: its logarithm is added to their logits."""

    start: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    """Weight at the first step; 1 changes nothing."""
    end: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    """Weight at the last step, reached linearly."""


class PassSwitches(Part):
    """Optional graph passes."""

    sink_unmerge: bool = True
    """Move elementwise work in front of the unmerge."""
    split_projection: bool = True
    """Split a projection of joined branches (FLUX single blocks), so that one branch can stay merged."""
    gather_rotary: bool = True
    """Let rotary tables follow the tokens. Without it they are cut to length, which puts most merged tokens
    in a wrong place: what a merge that does not know of positions would do, for comparison."""
