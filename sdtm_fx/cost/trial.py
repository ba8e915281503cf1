"""One block in one stage, run on fake tensors to be counted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensor

from sdtm_fx.base_plan import Plan
from sdtm_fx.capture.arguments import Leaf
from sdtm_fx.cost.effort import EffortCounter
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.methods.base import Method
from sdtm_fx.phase import Phase
from sdtm_fx.recipe.inside import InsideSpec
from sdtm_fx.recipe.schema import Recipe
from sdtm_fx.rewriting.programs import Program
from sdtm_fx.rewriting.serving import dense_variant
from sdtm_fx.rewriting.spans import active_span, sites_inside
from sdtm_fx.runtime.call import BlockContext, Call, OpenSpan, OpenStream, PlanKey, Variant
from sdtm_fx.runtime.inside import Inside, merging_inside
from sdtm_fx.runtime.state import BranchState


@dataclass(frozen=True)
class Trial:
    """A block in a stage.

    Attributes:
        recipe: The recipe.
        stage: Index of the stage.
        program: The rewritten block.
        block: A block of the program's structure.
        leaves: The arguments of the example call, fake tensors.
        grid: Sides of the grid of the example's tokens that may be merged.
        left_out: Sites that stay dense.
        with_extra: Count what is no product too.
        references: Tokens of reference images in the example.
    """

    recipe: Recipe
    stage: int
    program: Program
    block: torch.nn.Module
    leaves: list[Leaf]
    grid: TokenGrid
    left_out: frozenset[str] = frozenset()
    with_extra: bool = False
    references: int = 0

    @property
    def beside(self) -> int:
        """Tokens of the image stream that are never merged: of protected frames, and of references."""
        return self.recipe.tokens.protected(self.grid) + self.references

    @property
    def variant(self) -> Variant:
        """The graphs of the block that merge."""
        return Variant(stage=self.stage, left_out=self.left_out)

    @property
    def sequence(self) -> FakeTensor:
        """[B, L, D], the first sequence that the block takes."""
        return next(v for v in self.leaves if isinstance(v, FakeTensor) and v.ndim == 3)

    @property
    def inside_sites(self) -> frozenset[str]:
        """Ids of the sites that the stage merges inside of a span that the block is in."""
        place = active_span(self.recipe, self.program.spans, self.variant)
        if place is None or not place.is_short(self.recipe.spans[place.span_index]):
            return frozenset()
        here = {self.recipe.sites[place.site_index].id for place in self.program.places}
        return frozenset(sites_inside(self.recipe, self.stage)) & here

    @property
    def merges_keys(self) -> bool:
        """Whether the stage merges keys alone somewhere in the block."""
        wanted = (set(self.recipe.stages[self.stage].sites) | self.inside_sites) - self.left_out
        here = (self.recipe.sites[place.site_index] for place in self.program.places)
        return any(site.merge == "keys" and site.id in wanted for site in here)

    def counts(self) -> tuple[int, ...]:
        """A small and a large number of tokens that the stage can remove on this grid."""
        method = self.recipe.stages[self.stage].method
        if not method.merges:
            return (tokens_on(self.grid),)
        return _small_and_large(method, self.grid)

    def counts_inside(self, slots: int) -> tuple[int, ...]:
        """A small and a large number of a span's slots that sites inside can remove; none where there are too few."""
        method, row = self._inside.method, (1, slots)
        return _small_and_large(method, row) if method.capacity(row) else ()

    def run(
        self, batch: int
    ) -> tuple[EffortCounter, EffortCounter, dict[int, EffortCounter], dict[str, int]]:
        """Count the dense block, the one that stores features, and the merged one, the plan being given.

        Returns:
            The counts, and the bytes that are stored, by name of the feature.
        """
        slope, now = (torch.zeros((), device=self.sequence.device) for _ in range(2))
        state = BranchState(slope=slope, now=now)
        dense = self._count(None, 0, state, {})
        stored = self._count(self._refresh, 0, state, {})  # stores what the stage may forecast from
        held = {name: feature.bytes() for (_, name), feature in state.features.items()}
        merged = {n: self._count(self.variant, n, state, self._plan(n, batch)) for n in self.counts()}
        return dense, stored, merged, held

    def count_inside(self, remove: int, further: int, batch: int) -> EffortCounter:
        """Count the block inside of its span, plans being given.

        Args:
            remove: Tokens that the span removes.
            further: Slots that sites inside remove, where they are not left out.
            batch: Samples.
        """
        planned = self._plan(remove, batch)
        if further:
            method, slots = self._inside.method, tokens_on(self.grid) - remove
            view = method.blank_view(self._rows(batch), (1, slots), 8)
            with self.sequence.device:
                planned[0, 0] = method.plan(view, further)
        state = BranchState(slope=torch.zeros((), device=self.sequence.device))
        return self._count(self.variant, remove, state, planned)

    @property
    def _inside(self) -> InsideSpec:
        spec = merging_inside(self.recipe.stages[self.stage])
        assert spec is not None, "asked of blocks that merge inside of spans alone"
        return spec

    def _rows(self, batch: int) -> int:
        return 1 if "batch" in self.recipe.plan.share else batch

    def _count(
        self, variant: Variant | None, remove: int, state: BranchState, planned: dict[PlanKey, object]
    ) -> EffortCounter:
        """Count one run, and what runs inside each site's module."""
        modules = {place.local: self.block.get_submodule(place.local) for place in self.program.places}
        counter = EffortCounter()
        function = None if variant is None else self.program.functions.get(variant.key)
        leaves, spans = self._in_span(planned)
        spans = {**spans, **self.program.begun(variant, leaves)}
        with counter.counting(not self.with_extra), counter.products.watching(modules):
            if variant is None or function is None:
                self.program.dense(self.block, *self.leaves)
            else:
                call = model_call(self.recipe, self.stage, variant, self.grid, remove, state, self.references)
                function(self.block, BlockContext(call, 0, planned, spans=spans), *leaves)
        return counter

    def per_channel(self, remove: int) -> int:
        """MACs of one merge, and of one unmerge, per channel and sample."""
        with self.sequence.fake_mode:
            return self._make_plan(remove, 1).macs_per_channel

    def _plan(self, remove: int, batch: int) -> dict[PlanKey, object]:
        """A plan that the block finds made already."""
        if not self.recipe.stages[self.stage].method.merges:
            return {}
        return {0: self._make_plan(remove, batch)}

    def _make_plan(self, remove: int, batch: int) -> Plan:
        method = self.recipe.stages[self.stage].method
        with self.sequence.device:
            plan = method.plan(method.blank_view(self._rows(batch), self.grid, 8), remove)
            return plan.prepared(self.sequence.dtype)

    def _in_span(self, planned: dict[PlanKey, object]) -> tuple[list[Leaf], dict[str, OpenSpan | OpenStream]]:
        """The arguments of a block inside a span, whose image tokens are merged, and the span that it is in."""
        place = active_span(self.recipe, self.program.spans, self.variant)
        plan = planned.get(0)
        if place is None or place.first or not isinstance(plan, Plan):
            return self.leaves, {}
        span = self.recipe.spans[place.span_index]
        names = [n.target for n in self.program.captured.nodes if n.op == "placeholder"]
        leaves, index = list(self.leaves), names.index(span.input)
        tokens = leaves[index]
        assert isinstance(tokens, torch.Tensor)
        stream, before = tokens if span.residual == "dense" else None, self.recipe.tokens.protected(self.grid)
        opened = OpenSpan(plan, stream, before=before, behind=self.references)
        leaves[index] = opened.placed.merge(tokens)
        return leaves, {span.id: opened}

    @property
    def _refresh(self) -> Variant:
        dense = dense_variant(self.recipe, self.stage)
        return dense if dense.measure is not None else replace(dense, left_out=self.left_out)


def _small_and_large(method: Method, grid: TokenGrid) -> tuple[int, ...]:
    units = method.capacity(grid) // method.quantum()
    return tuple(sorted({max(1, units // 3) * method.quantum(), max(1, units) * method.quantum()}))


def model_call(
    recipe: Recipe,
    stage: int,
    variant: Variant,
    grid: TokenGrid,
    remove: int,
    state: BranchState,
    references: int = 0,
) -> Call:
    """A call of a model with one block and no generation around it; plans inside of spans are given."""
    inside = merging_inside(recipe.stages[stage])
    return Call(
        variant=variant,
        phase=Phase(variant.stage, remove, refresh=variant.refresh is not None),
        method=recipe.stages[stage].method,
        grid=grid,
        halves=1,
        share_batch="batch" in recipe.plan.share,
        every_layers=1,
        keep_plans=False,
        one_age_counter=False,
        advance_ages=True,
        state=state,
        forecast_order=0 if recipe.reuse is None else recipe.reuse.order,
        forecast_weight=1.0,
        threshold=None if variant.stage is not None else 0.0,
        salt=None,
        prompt_bias=torch.zeros(()),
        reduce=recipe.stages[stage].reduce,
        inside=None if inside is None else Inside(inside.method, 0, inside.reduce),
        updates_tokens=recipe.reuse is not None and recipe.reuse.update == "tokens",
        protected_frames=recipe.tokens.protect.first_frames,
        references=references,
    )
