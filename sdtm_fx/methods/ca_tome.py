"""CA-ToMe: ToMe with a threshold on the cosine in place of a ratio, and cached pairs (2501.00946)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdtm_fx.methods.base import TokenView
from sdtm_fx.methods.cells import CellMatching


@dataclass(frozen=True, kw_only=True)
class CAToMe(CellMatching):
    """Merges as `tome`, as many tokens as are similar enough.

    How many that is a ratio of the form ``{threshold: 0.7, start: 0.75}`` says: `start` is the most that goes, and
    the count of a step is what had a cosine of at least `threshold` in the step before, the mean over the layers,
    rounded down to one of a few levels. Of a batch the least count goes (the published code takes the
    largest, so some samples merge below the threshold). With a plain ratio this is `tome`, and cached pairs are
    ``plan.every_steps``; a step that counts makes a plan of its own, so under a threshold nothing is cached.

    Formula:
        Pairs as in `tome`; in every step r = #{x : max cos(x, t) ≥ threshold} tokens go, counted in the step before.

    Use:
        With a threshold as ratio, where images differ in how much of them is alike.

    Attributes:
        window: Height and width of a cell, in tokens.
        random: Draw the absorbing token; otherwise it is the top-left one.
    """

    name: Literal["ca_tome"] = "ca_tome"

    def count_above(self, view: TokenView, threshold: float) -> Tensor:
        """Return how many tokens have a cosine of `threshold` or more to an absorbing token.

        Returns:
            [B] int64, on the device of the tokens.
        """
        self._check_view(view)
        if not self.capacity(view.grid):
            return view.metric.new_zeros(view.metric.shape[0], dtype=torch.int64)
        return (self.match(view)[2] >= threshold).sum(dim=1)
