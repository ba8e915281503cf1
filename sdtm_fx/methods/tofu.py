"""ToFu, token fusion: the matching of ToMe, and slots that are pruned or keep their norm (Kim et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdtm_fx.methods.base import TokenView
from sdtm_fx.methods.cells import CellMatching
from sdtm_fx.plan import MergePlan
from sdtm_fx.reductions import Reduce


@dataclass(frozen=True, kw_only=True)
class ToFu(CellMatching):
    """Tokens are matched as in `tome`; a slot is pruned to its absorbing token, or a mean of full length.

    ToFu prunes in layers that are far from linear and merges in those that are nearly so. Its rule for which
    layer is which was found in no source, so a recipe says it: `reduce` here is for all layers, and an entry
    of the recipe's `layers` with a `reduce` of its own is for some.

    Formula:
        Pairs as in `tome`; a slot S holds mean(S) / ‖mean(S)‖ · max ‖x‖ over its tokens ("mlerp"), or the value of
        its absorbing token ("prune").

    Use:
        At high ratios, where means get short: "mlerp" for most blocks, "prune" by a rule of `layers` for the first.

    Attributes:
        window: Height and width of a cell, in tokens.
        random: Draw the absorbing token; otherwise it is the top-left one.
        reduce: "mlerp" (the direction of the mean and the norm of the longest token), "prune" (the value of
            the absorbing token) or "mean".
    """

    name: Literal["tofu"] = "tofu"
    reduce: Reduce = "mlerp"

    def _plan(self, view: TokenView, remove: int) -> MergePlan:
        return super()._plan(view, remove).reduced_by(self.reduce)
