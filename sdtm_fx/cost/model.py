"""The cost model of a rewritten model: MACs of every step, at any grid."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from sdtm_fx.capture.arguments import Leaf
from sdtm_fx.cost.block_cost import BlockCost, measure_block
from sdtm_fx.cost.counter import Macs
from sdtm_fx.cost.inner import InnerCost, measure_inner
from sdtm_fx.cost.planning import PlanCost, plan_cost
from sdtm_fx.cost.trial import Trial
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.layer_rates import LayerRates
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.programs import Program
from sdtm_fx.rewriting.spans import active_span, any_span
from sdtm_fx.runtime.call import Variant
from sdtm_fx.runtime.inside import merging_inside, removed_inside


@dataclass(frozen=True)
class MeasuredBlock:
    """A rewritten block, and the example call that it was captured with.

    Attributes:
        path: Module path of the block.
        block: The block.
        program: Its program.
        leaves: Arguments of the example call, fake tensors.
        index: Its place among the blocks of the model, in the order of execution.
    """

    path: str
    block: torch.nn.Module
    program: Program
    leaves: list[Leaf] = field(repr=False)
    index: int


def sites_of(recipe: Recipe, stage: int, block: MeasuredBlock) -> frozenset[str]:
    """Ids of the sites in a block that a stage merges; of a block in a span, the span's, which is all or nothing."""
    place = any_span(recipe, block.program.spans, Variant(stage=stage))
    if place is not None:
        return frozenset({recipe.spans[place.span_index].id})
    ids = {recipe.sites[place.site_index].id for place in block.program.places}
    return frozenset(recipe.stages[stage].sites) & ids


@dataclass
class CostModel:
    """Costs of all blocks; each structure is measured once, when first asked for.

    Attributes:
        recipe: The recipe.
        blocks: The rewritten blocks.
        grid: Sides of the grid of the tokens that may be merged, in the example calls.
        text: Text tokens of the example calls.
        with_extra: Whether what is no product is counted too, for the cost gate.
        layers: What blocks remove that differ from the rest.
        references: Tokens of reference images in the example calls.
    """

    recipe: Recipe
    blocks: tuple[MeasuredBlock, ...]
    grid: TokenGrid
    text: int
    with_extra: bool = False
    layers: LayerRates = field(default_factory=LayerRates)
    references: int = 0
    _inner: dict[tuple[int, int], InnerCost | None] = field(default_factory=dict, repr=False)
    _measured: dict[tuple[int, int, frozenset[str]], BlockCost | None] = field(
        default_factory=dict, repr=False
    )

    def block_cost(
        self, block: MeasuredBlock, stage: int, left_out: frozenset[str] = frozenset()
    ) -> BlockCost | None:
        """The cost of a block in a stage without some of its sites, None where the stage leaves it alone."""
        if left_out and left_out >= sites_of(self.recipe, stage, block):
            return None
        key = (id(block.program), stage, left_out)
        if key not in self._measured:
            trial = self._trial(block, stage, left_out)
            # What sites inside of a span save has a law of its own: `inner_cost`.
            trial = replace(trial, left_out=left_out | trial.inside_sites)
            self._measured[key] = measure_block(trial, self.text)
        return self._measured[key]

    def inner_cost(self, block: MeasuredBlock, stage: int) -> InnerCost | None:
        """What the sites of a block save by merging the slots of a span further, None where they do not."""
        key = (id(block.program), stage)
        if key not in self._inner:
            self._inner[key] = measure_inner(self._trial(block, stage), self.text)
        return self._inner[key]

    def span_entry(self, block: MeasuredBlock, span_index: int) -> int:
        """Number of the block in which the span begins that a block is in.

        Programs do not know: blocks in equal places share theirs.
        """
        return max(
            other.index
            for other in self.blocks
            if other.index <= block.index
            and any(place.first and place.span_index == span_index for place in other.program.spans)
        )

    def _trial(self, block: MeasuredBlock, stage: int, left_out: frozenset[str] = frozenset()) -> Trial:
        return Trial(
            self.recipe,
            stage,
            block.program,
            block.block,
            block.leaves,
            self.layers.grid(block.index, self.grid),
            left_out,
            self.with_extra,
            self.references,
        )

    def saved(
        self,
        stage: int,
        grid: TokenGrid,
        text: int,
        remove: int,
        batch: int = 1,
        left_out: Mapping[str, frozenset[str]] | None = None,
        *,
        fresh_plan: bool = True,
        fresh_destinations: bool = True,
        references: int = 0,
    ) -> Macs:
        """MACs that a stage saves in one call of the model.

        What finding the tokens costs, and what bringing them into slots and back costs, is taken off.

        Args:
            stage: Index of the stage.
            grid: Sides of the grid of the tokens that may be merged.
            text: Text tokens.
            remove: Tokens that the phase removes at each site.
            batch: Samples in the call.
            left_out: Sites that the cost gate leaves dense, by path of the block.
            fresh_plan: Whether plans are made in this call; otherwise they are those of an earlier step.
            fresh_destinations: Whether the destinations of plans that are made are chosen in this call.
            references: Tokens of reference images.
        """
        method = self.recipe.stages[stage].method
        total, plans = Macs(), dict[tuple[TokenGrid, int, int], PlanCost]()
        groups: set[int] = set()
        further = _Further(self, stage, tokens_on(grid) - remove, text, batch, self.beside(grid, references))
        for block in self.blocks:
            cost = self.block_cost(block, stage, (left_out or {}).get(block.path, frozenset()))
            if cost is None:
                continue
            own, own_grid = (
                self.layers.remove(block.index, remove, method, grid),
                self.layers.grid(block.index, grid),
            )
            key, beside = (own_grid, cost.width, own), self.beside(own_grid, references)
            if key not in plans:
                plans[key] = plan_cost(method, own_grid, text + beside, cost.width, own)
            moving = Macs(0.0, float(plans[key].per_channel * cost.moved))
            total = total + (cost.saving.at(tokens_on(own_grid), text, own, beside) - moving) * batch
            group = block.index // self.recipe.plan.every_layers
            span = active_span(self.recipe, block.program.spans, Variant(stage=stage))
            if group not in groups and (span is None or span.first):
                groups.add(group)
                planning = _planning(plans[key], fresh_plan, fresh_destinations)
                total = total - planning * (1 if "batch" in self.recipe.plan.share else batch)
            if span is not None:
                total = total + further.saved(block, self.span_entry(block, span.span_index), cost.width)
        return total

    def beside(self, grid: TokenGrid, references: int) -> int:
        """Tokens of the image stream that are never merged, at a grid of those that may be."""
        return self.recipe.tokens.protected(grid) + references

    def step_cost(
        self, grid: TokenGrid, text: int, references: int = 0
    ) -> Callable[[int | None, int], float]:
        """Total MACs per sample of the rewritten blocks in one step: what the schedule weighs levels by."""
        dense = 0.0
        for block in self.blocks:
            stages = range(len(self.recipe.stages))
            first = next(filter(None, (self.block_cost(block, stage) for stage in stages)), None)
            if first is not None:
                own = self.layers.grid(block.index, grid)
                dense += first.dense_at(tokens_on(own) + self.beside(own, references), text)

        @functools.cache
        def cost(stage: int | None, remove: int) -> float:
            if stage is None or not remove:
                return dense
            return dense - self.saved(stage, grid, text, remove, references=references).total

        return cost


class _Further:
    """What merging inside of the spans of a stage saves in one call, block by block; plans are taken off once."""

    def __init__(self, cost: CostModel, stage: int, slots: int, text: int, batch: int, beside: int) -> None:
        self._cost, self._stage, self._slots, self._text, self._batch = cost, stage, slots, text, batch
        self._beside = beside
        self._inside = merging_inside(cost.recipe.stages[stage])
        self._planned: set[tuple[int, int]] = set()

    def saved(self, block: MeasuredBlock, entry: int, width: int) -> Macs:
        """What a block of a span saves that begins in block number `entry`; `width` is that of the tokens compared."""
        inside, inner = self._inside, self._cost.inner_cost(block, self._stage)
        if inside is None or inner is None:
            return Macs()
        plan = self._cost.recipe.plan
        remove = removed_inside(inside, self._slots, plan.round_to)
        total = inner.saving.at(self._slots, self._text, remove, self._beside) * self._batch
        key = (entry, block.index // plan.every_layers)
        if key not in self._planned:
            self._planned.add(key)
            made = plan_cost(inside.method, (1, self._slots), self._text, width, remove).made
            total = total - made * (1 if "batch" in plan.share else self._batch)
        return total


def _planning(plan: PlanCost, fresh_plan: bool, fresh_destinations: bool) -> Macs:
    """What one plan costs in a step that makes it, weighs it anew, or takes it over."""
    if not fresh_plan:
        return Macs()
    return plan.made if fresh_destinations else plan.weighed
