"""Random merging: the tokens that go are drawn by hash, whatever they hold. A lower bound for other methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.hashing import hash_words
from sdtm_fx.methods.base import Method, TokenView
from sdtm_fx.methods.matching import best_match, plan_best
from sdtm_fx.plan import MergePlan


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Tokens drawn at random go, and each joins the most cosine-similar token that stays.

    Random is the selection, as where the literature compares a score with a random one; the pairing is that
    of the matching methods, so a difference to them is due to what they select. Random whole windows are
    `ssm` with ``select: random``. The draw comes from a hash of the salt and the token: another one at every
    step and plan group, the same for the whole batch, repeatable with the seed. Slots are in raster order of
    the tokens that represent them.

    Formula:
        The tokens of smallest hash(seed, step, group, token) go, each to the token t that stays of largest cos(x, t).

    Use:
        To see what a method's choice is worth: whatever does not beat this chooses nothing.
    """

    name: Literal["random"] = "random"

    def capacity(self, grid: TokenGrid) -> int:
        """Return all tokens but one."""
        return max(tokens_on(grid) - 1, 0)

    def needs_grid(self) -> str | None:
        """Return None: places do not matter."""
        return None

    def _plan(self, view: TokenView, remove: int) -> MergePlan:
        tokens = view.metric.shape[1]
        words = hash_words(torch.arange(tokens, device=view.metric.device), view.salt)[None]
        ranked = torch.argsort(words, dim=1, stable=True)
        # Raster order on both sides, so that equal cosines go to the keeper that comes first.
        sources, keepers = ranked[:, :remove].sort(dim=1).values, ranked[:, remove:].sort(dim=1).values
        cosine, partner = best_match(view.metric, sources, keepers)
        return plan_best(sources, partner, cosine, remove, tokens)
