"""What sites inside of a span save beyond the span itself, at any size, from one small measurement."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sdtm_fx.cost.counter import Macs
from sdtm_fx.cost.saving import Saving, key_savings, saving_of_merging
from sdtm_fx.cost.trial import Trial
from sdtm_fx.grids import tokens_on


@dataclass(frozen=True)
class InnerCost:
    """The law of `Saving`, with the slots of the span in the place of image tokens.

    Attributes:
        saving: What merging inside saves in the whole block, the search left out.
        sites: The same at each site, by path inside the block.
    """

    saving: Saving
    sites: dict[str, Saving]


def measure_inner(trial: Trial, text: int) -> InnerCost | None:
    """Measure what a block of a span saves by merging its slots further; None where it does not.

    Args:
        trial: The block and the stage; its program has the variant without the sites inside, too.
        text: Text tokens of the example.
    """
    inside = trial.inside_sites
    if not inside:
        return None
    batch, removed = trial.sequence.shape[0], trial.counts()[0]
    slots = tokens_on(trial.grid) - removed
    counts = trial.counts_inside(slots)
    if not counts:
        return None  # on the example's grid; schedules say so where it happens
    with torch.no_grad(), trial.sequence.fake_mode:
        alone = replace(trial, left_out=inside).count_inside(removed, 0, batch).products
        merged = {n: trial.count_inside(removed, n, batch).products for n in counts}
    slots += trial.beside
    keyed = key_savings(alone, merged, batch, slots, text) if trial.merges_keys else {}
    saving, sites = saving_of_merging(alone, merged, keyed, dict.fromkeys(merged, Macs()), batch, slots, text)
    return InnerCost(saving, sites)
