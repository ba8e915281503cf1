"""The cost gate on a schedule: which sites each phase leaves out, and which phases it drops altogether."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from sdtm_fx.cost.decision import GateDecision, GateSize, Level, SiteVerdict
from sdtm_fx.cost.effort import Effort
from sdtm_fx.cost.gate import NOTHING, Offer, best_offers, marginal, pays, subsets, together
from sdtm_fx.cost.gate_schedule import drop_levels
from sdtm_fx.cost.gate_units import Unit, stage_sites_in_span, units
from sdtm_fx.cost.model import CostModel, MeasuredBlock, sites_of
from sdtm_fx.cost.planning import plan_cost, plan_effort
from sdtm_fx.cost.profile import DeviceProfile
from sdtm_fx.grids import tokens_on
from sdtm_fx.phase import Schedule
from sdtm_fx.rewriting.serving import dense_variant
from sdtm_fx.runtime.call import Variant
from sdtm_fx.runtime.refreshes import Suffices, add_refreshes


def decide(
    cost: CostModel,
    schedule: Schedule,
    size: GateSize,
    profile: DeviceProfile,
    suffices: Suffices = lambda served, stage: False,
) -> GateDecision:
    """Decide for every phase of a schedule which sites are merged.

    Args:
        cost: What blocks cost, measured with every set of sites.
        schedule: What the recipe asks for.
        size: The size of the calls.
        profile: What the device can do.
        suffices: Whether the features stored for one stage are all that another reads.
    """
    return _Gate(cost, schedule, size, profile, suffices).decide()


class _Gate:
    """One decision in the making."""

    def __init__(
        self,
        cost: CostModel,
        schedule: Schedule,
        size: GateSize,
        profile: DeviceProfile,
        suffices: Suffices,
    ) -> None:
        self.cost, self.recipe, self.schedule = cost, cost.recipe, schedule
        self.size, self.profile, self.suffices = size, profile, suffices
        self.levels: list[Level] = list(
            dict.fromkeys((p.stage, p.remove) for p in schedule.phases if p.stage is not None)
        )
        phases = [schedule.phase(step) for step in range(schedule.steps)]
        merging = sum(p.stage is not None for p in phases)
        stores = sum(p.refresh for p in phases)
        self.stores_per_step = stores / merging if merging else 0.0
        self._known: dict[tuple[int, Level, int], dict[frozenset[str], Offer]] = {}
        self._chosen: dict[tuple[Level, str], Offer] = {}
        self._plans: dict[tuple[Level, int], float] = {}
        self._per_channel: dict[tuple[int, int], int] = {}

    def decide(self) -> GateDecision:
        for level in self.levels:
            for unit in units(self.cost, level[0]):
                offers = [list(self.offers(block, level).values()) for block in unit.blocks]
                choose = together if unit.is_span else best_offers
                chosen = choose(offers, self.plan(unit.blocks[0], level))
                for block, offer in zip(unit.blocks, chosen, strict=True):
                    self._chosen[level, block.path] = offer
        if self.recipe.reuse is not None:
            self._reconcile(self._groups())
        return GateDecision(
            profile=self.profile,
            verdicts=tuple(
                verdict
                for level in self.levels
                for unit in units(self.cost, level[0])
                for verdict in self._verdicts(level, unit)
            ),
            schedule=self._gated_schedule(),
            merges={level: self._left_out(level) for level in self.levels},
            stores=self._stores(),
        )

    def _groups(self) -> list[list[MeasuredBlock]]:
        groups: dict[int, list[MeasuredBlock]] = {}
        for block in self.cost.blocks:
            groups.setdefault(block.index // self.recipe.plan.every_layers, []).append(block)
        return list(groups.values())

    def offers(self, block: MeasuredBlock, level: Level) -> dict[frozenset[str], Offer]:
        """What a block can do in a phase, by the sites that are merged."""
        key = (id(block.program), level, self._own(block, level))
        if key not in self._known:
            sites = sites_of(self.recipe, level[0], block)
            self._known[key] = {
                kept: self._offer(block, level, kept, sites) for kept in subsets(sorted(sites))
            }
        return self._known[key]

    def _offer(
        self, block: MeasuredBlock, level: Level, kept: frozenset[str], sites: frozenset[str]
    ) -> Offer:
        stage, remove, size = level[0], self._own(block, level), self.size
        tokens, item = tokens_on(size.grid), size.dtype.itemsize
        cost = self.cost.block_cost(block, stage, sites - kept)
        if cost is None or cost.extra is None:
            return NOTHING
        beside = self.cost.beside(size.grid, size.references)
        macs = cost.saving.at(tokens, size.text, remove, beside) * size.batch
        moving = Effort(attention=float(self._macs_per_channel(stage, remove) * cost.moved * size.batch))
        saved = cost.extra.saved(remove, size.batch, item) + Effort(macs.linear, macs.attention)
        spent = cost.extra.spent(tokens, size.batch, item) + moving
        spent = spent + cost.extra.storing(tokens, size.batch, item) * self.stores_per_step
        return Offer(kept, self.profile.seconds(saved), self.profile.seconds(spent))

    def _own(self, block: MeasuredBlock, level: Level) -> int:
        """Tokens that a block removes in a phase."""
        stage, remove = level
        return self.cost.layers.remove(block.index, remove, self.recipe.stages[stage].method, self.size.grid)

    def _macs_per_channel(self, stage: int, remove: int) -> int:
        """MACs of one merge, and of one unmerge, per channel and sample."""
        if (stage, remove) not in self._per_channel:
            cost = plan_cost(self.recipe.stages[stage].method, self.size.grid, self.size.text, 1, remove)
            self._per_channel[stage, remove] = cost.per_channel
        return self._per_channel[stage, remove]

    def plan(self, block: MeasuredBlock, level: Level) -> float:
        """Seconds per call that the plan takes of the group that a block is in; its blocks remove the same."""
        own = self._own(block, level)
        if (level, own) not in self._plans:
            self._plans[level, own] = self._plan(level, own)
        return self._plans[level, own]

    def _plan(self, level: Level, remove: int) -> float:
        """The same for a number of removed tokens, where some steps keep the plan of a step before."""
        stage, size = level[0], self.size
        whole = (self.cost.block_cost(block, stage) for block in self.cost.blocks)
        width = next((cost.width for cost in whole if cost is not None), None)
        if width is None:
            return 0.0
        steps = map(self.schedule.phase, range(self.schedule.steps))
        phases = [p for p in steps if (p.stage, p.remove) == level]
        made = Counter(p.fresh_destinations for p in phases if p.fresh_plan) if phases else Counter([True])
        seconds = 0.0
        for fresh, count in made.items():
            effort = plan_effort(
                self.recipe, stage, size.grid, size.text, width, remove, size.batch, size.dtype, not fresh
            )
            seconds += self.profile.seconds(effort) * count / max(len(phases), 1)
        return seconds

    def _reconcile(self, groups: list[list[MeasuredBlock]]) -> None:
        """See to it that dense steps store what phases read: one graph stores for all phases of its stages.

        Sites whose outputs join before they are stored can only stay together, or go together.
        """
        may_grow, unsettled = True, True
        while unsettled:
            unsettled = False
            for blocks in groups:
                for block in blocks:
                    unsettled |= self._settle(block, may_grow)
                for level in self.levels:
                    chosen = [self._chosen[level, block.path] for block in blocks]
                    if not pays(chosen, self.plan(blocks[0], level)):
                        self._chosen.update({(level, block.path): NOTHING for block in blocks})
                        unsettled = True
            may_grow = False  # from now on sets only shrink, so this ends

    def _settle(self, block: MeasuredBlock, may_grow: bool) -> bool:
        """Change what a block merges where features would be missing; returns whether anything was changed."""
        changed = False
        for served in self._served():
            readers = [level for level in self.levels if self._reads(served, level[0])]
            kept = frozenset(s for level in readers for s in self._chosen[level, block.path].sites)
            stored = block.program.features.get(self._store_variant(served, block, kept), frozenset())
            for level in readers:
                offer, offers = self._chosen[level, block.path], self.offers(block, level)
                sites = sites_of(self.recipe, level[0], block)
                variant = Variant(stage=level[0], left_out=sites - offer.sites)
                if not offer.sites or block.program.features.get(variant, frozenset()) <= stored:
                    continue
                all_of = offers.get(kept & sites, NOTHING)
                grows = may_grow and all_of.sites != offer.sites and all_of.net >= self.plan(block, level)
                self._chosen[level, block.path] = all_of if grows else NOTHING
                changed = True
        return changed

    def _served(self) -> tuple[int, ...]:
        """The stages that dense steps store features for."""
        stages = (dense_variant(self.recipe, stage).refresh for stage, _ in self.levels)
        return tuple(dict.fromkeys(stage for stage in stages if stage is not None))

    def _reads(self, served: int, stage: int) -> bool:
        """Whether a stage may read what dense steps store for another."""
        return dense_variant(self.recipe, stage).refresh == served or self.suffices(served, stage)

    def _store_variant(self, served: int, block: MeasuredBlock, kept: frozenset[str]) -> Variant:
        dense = dense_variant(self.recipe, served)
        if dense.measure is not None:
            return dense  # what counts goes on storing everything: one graph less
        return replace(dense, left_out=sites_of(self.recipe, served, block) - kept)

    def _stores(self) -> dict[int, dict[str, Variant]]:
        stores: dict[int, dict[str, Variant]] = {}
        for served in self._served():
            readers = [level for level in self.levels if self._reads(served, level[0])]
            for block in self.cost.blocks:
                kept = frozenset(s for level in readers for s in self._chosen[level, block.path].sites)
                variant = self._store_variant(served, block, kept)
                if variant.left_out:
                    stores.setdefault(served, {})[block.path] = variant
        return stores

    def _left_out(self, level: Level) -> dict[str, Variant]:
        stage, variants = level[0], {}
        for block in self.cost.blocks:
            left_out = sites_of(self.recipe, stage, block) - self._chosen[level, block.path].sites
            if left_out:
                # A block whose span is left out merges nothing at all.
                left_out |= stage_sites_in_span(self.recipe, stage, block)
                variants[block.path] = Variant(stage=stage, left_out=left_out)
        return variants

    def _verdicts(self, level: Level, unit: Unit) -> list[SiteVerdict]:
        verdicts = []
        for block in unit.blocks:
            chosen, offers = self._chosen[level, block.path], self.offers(block, level)
            others = any(self._chosen[level, b.path].sites for b in unit.blocks if b is not block)
            shares = block is not unit.blocks[0] if unit.is_span else others
            plan = 0.0 if shares else self.plan(block, level)
            for site in (
                s for s in self.recipe.stages[level[0]].sites if s in sites_of(self.recipe, level[0], block)
            ):
                saved, spent = marginal(offers, chosen, site, plan)
                kept = site in chosen.sites
                verdicts.append(SiteVerdict(*level, block.path, site, saved, spent, kept))
        return verdicts

    def _gated_schedule(self) -> Schedule:
        """The schedule with dense steps in place of phases in which no block merges any more."""
        gone = {
            level
            for level in self.levels
            if not any(self._chosen[level, b.path].sites for b in self.cost.blocks)
        }
        if not gone:
            return self.schedule
        reuses = self.recipe.reuse is not None
        gated = drop_levels(self.schedule, gone, refresh=reuses)
        return add_refreshes(gated, self.suffices) if reuses else gated
