"""The cost of a block in a stage, from one measurement on fake tensors."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from sdtm_fx.cost.counter import Macs
from sdtm_fx.cost.extra import Extra, fit_extra
from sdtm_fx.cost.planning import score_macs
from sdtm_fx.cost.saving import Saving, key_savings, saving_of_merging
from sdtm_fx.cost.skipping import saving_of_skipping
from sdtm_fx.cost.trial import Trial
from sdtm_fx.grids import tokens_on


@dataclass(frozen=True)
class BlockCost:
    """The cost of one block in one stage.

    Attributes:
        saving: What the stage saves in the whole block, the search for tokens left out.
        sites: The same at each site, by path inside the block; what lies between sites is in `saving` only.
        width: Channels that similarity is computed from.
        dense: MACs of the whole block at the measured size, per sample, nothing removed.
        size: Image and text tokens of the measured size, protected and reference tokens among the former.
        moved: Channels that are brought into slots and back, over all merges and unmerges of the block.
        extra: What the stage adds and saves beside products, the search for tokens left out; None where only
            products were counted.
        held: Bytes per image token and sample that dense steps store for the stage, by name of the feature.
    """

    saving: Saving
    sites: dict[str, Saving]
    width: int
    dense: Macs
    size: tuple[int, int]
    extra: Extra | None
    moved: int = 0
    held: Mapping[str, float] = field(default_factory=dict)

    def dense_at(self, tokens: int, text: int) -> float:
        """Total MACs per sample without merging, scaled from the measured size; good to a few percent.

        Args:
            tokens: Image tokens, with those that are never merged.
            text: Text tokens.
        """
        grown = (tokens + text) / sum(self.size)
        return self.dense.linear * grown + self.dense.attention * grown**2


def measure_block(trial: Trial, text: int) -> BlockCost | None:
    """Measure a block in a stage, on the example call that it was captured with.

    Args:
        trial: The block and the stage; its program has the variants of the stage without the sites left out.
        text: Text tokens of the example.

    Returns:
        The cost, None when the stage leaves the block alone.
    """
    if trial.variant.key not in trial.program.functions:
        return None
    sequence, method = trial.sequence, trial.recipe.stages[trial.stage].method
    batch, width, tokens, beside = sequence.shape[0], sequence.shape[-1], tokens_on(trial.grid), trial.beside
    with torch.no_grad(), sequence.fake_mode:
        dense, stored, merged, held = trial.run(batch)
    extra = None
    if trial.with_extra:
        added = {remove: counter.effort - dense.effort for remove, counter in merged.items()}
        extra = fit_extra(added, stored.effort - dense.effort, tokens, batch, sequence.dtype.itemsize)
    counted = {remove: counter.products for remove, counter in merged.items()}
    moved = trial.program.moved.get(trial.variant, 0)
    if method.merges:
        plans = 1 if "batch" in trial.recipe.plan.share else batch
        scoring = score_macs(method, trial.grid, text + beside, width) * plans
        keyed = (
            key_savings(dense.products, counted, batch, tokens + beside, text) if trial.merges_keys else {}
        )
        # Products that merge and unmerge follow a law of their own; `moved` stands for them.
        moving = {n: Macs(0.0, float(trial.per_channel(n) * moved * batch)) for n in counted}
        besides = {n: scoring + macs for n, macs in moving.items()}
        whole = tokens + beside
        saving, sites = saving_of_merging(dense.products, counted, keyed, besides, batch, whole, text)
    else:
        (skipped,) = counted.values()
        left = functools.partial(saving_of_skipping, dense.products, skipped, batch, tokens + beside, text)
        saving, sites = left(None), {name: left(name) for name in dense.products.inside}
    macs, size = dense.products.macs * (1 / batch), (tokens + beside, text)
    each = {name: size_held / batch / (tokens + beside) for name, size_held in held.items()}
    return BlockCost(saving, sites, width, macs, size, extra, moved if method.merges else 0, each)
