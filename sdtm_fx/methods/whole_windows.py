"""What the methods share that merge windows whole."""

from __future__ import annotations

import torch
from torch import Tensor

from sdtm_fx.plan import MergePlan, plan_from_groups
from sdtm_fx.windows import Windows


def plan_windows(ranked: Tensor, windows: Windows, merged: int) -> MergePlan:
    """Merge the first windows of a ranking, each into one slot.

    Slots: tokens of unmerged windows, window by window, then leftover tokens, then merged windows, whose
    position is their top-left token.

    Args:
        ranked: [P, windows] int64, every window once, those to merge first.
        windows: The windows.
        merged: How many are merged.
    """
    device = ranked.device
    chosen, rest = ranked[:, :merged].sort(dim=1).values, ranked[:, merged:].sort(dim=1).values
    leftovers = windows.leftovers(device).expand(ranked.shape[0], -1)
    place = torch.arange(windows.size, device=device)
    alone, groups = (windows.token_at(part[..., None], place).flatten(1) for part in (rest, chosen))
    order = torch.cat([alone, leftovers, groups], dim=1)
    return plan_from_groups(order, order.shape[1] - merged * windows.size, windows.size)
