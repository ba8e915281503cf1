"""Plans that compute some tokens and leave the others out, which get their values from elsewhere (caches)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdtm_fx.errors import PlanError
from sdtm_fx.plan import MergePlan
from sdtm_fx.reductions import Reduce


@dataclass(frozen=True)
class KeptPlan(MergePlan):
    """M of N tokens, each alone; the others are computed nowhere.

    A slot is one kept token and holds nothing else. So that the plan is whole, a token that is left out is listed
    with the kept token in front of it (the first kept one where there is none) and unmerging hands it a copy of that;
    who uses the plan puts the stored value in its place. Slots are in raster order.
    """

    @property
    def merged_mask(self) -> Tensor:
        """[P, N] bool, the tokens that are left out; a kept token is alone, whoever is listed with it."""
        own = torch.arange(self.tokens, device=self.assign.device)
        return self.positions.gather(1, self.assign) != own

    def reduced_by(self, reduce: Reduce | None) -> KeptPlan:
        """Return the plan, which can only prune.

        Args:
            reduce: None or "prune".

        Raises:
            PlanError: Anything else, which would mix tokens that are left out into those that stay.
        """
        if reduce not in (None, "prune"):
            raise PlanError(f"found reduce {reduce!r} for tokens that are computed alone; accepted 'prune'")
        return self


def plan_of_kept(kept: Tensor, tokens: int) -> KeptPlan:
    """Return the plan that computes some tokens.

    Args:
        kept: [P, M] int64, different tokens in raster order; at least one.
        tokens: N.
    """
    batch, number = kept.shape
    stays = torch.zeros(batch, tokens, dtype=torch.int64, device=kept.device).scatter_(1, kept, 1)
    slot = stays.cumsum(1) - 1
    # Not clamp: see `Windows.nearby_row`.
    assign = torch.where(slot < 0, torch.zeros_like(slot), slot)
    # Slots are runs of the raster; the first one begins with it.
    starts = torch.cat([torch.zeros_like(kept[:, :1]), kept[:, 1:]], dim=1)
    order = torch.arange(tokens, device=kept.device).repeat(batch, 1)
    return KeptPlan(assign=assign, positions=kept, order=order, starts=starts, kept=number, reduce="prune")
