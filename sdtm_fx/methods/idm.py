"""IDM: merge the tokens that the others attend to least (SDTM, detail stage)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sdtm_fx.errors import PlanError
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.methods.ages import check_age_sign, relative_ages
from sdtm_fx.methods.base import (
    Count,
    Method,
    OptionError,
    Radius,
    TokenView,
    Weight,
    WindowSize,
    check_radius,
    check_window,
)
from sdtm_fx.methods.matching import best_match, plan_best, split_windows
from sdtm_fx.methods.neighbours import best_neighbour
from sdtm_fx.plan import MergePlan
from sdtm_fx.windows import Windows

Rank = Literal["inattentive", "similar", "both"]


@dataclass(frozen=True, kw_only=True)
class IDM(Method):
    """Inattentiveness-prioritised detail merging.

    Tokens are ranked by P_x = P_ina + age_sign · age_weight · P_fre, where P_ina = 1 - a / max(a) and `a` is
    the attention a token receives. The paper leaves the pairing open; two readings are offered:

    * `window=None`: the `remove` tokens with the largest P_x go, all others are keepers, and each token
      that goes joins its most cosine-similar keeper.
    * `window=(h, w)`: the token with the smallest P_x in each window is a keeper. Every other token finds its
      most similar keeper, in all windows (`radius=None`) or in those up to `radius` windows away, and the
      `remove` tokens that come first by `rank` go. Tokens that fill no window stay as they are.

    Slots are in raster order of the tokens that represent them.

    Formula:
        P_x = 1 - aₓ / max(a) + age_sign · age_weight · P_fre, with aₓ the attention that token x receives, summed
        over `probe_queries` image queries and all heads; the tokens of largest P_x go.

    Use:
        The late steps, in the feed-forward only, as in the paper; `local_match` needs no attention.

    Attributes:
        window: Height and width of a window in tokens, or None.
        radius: How many windows away a token looks for its keeper, or None for everywhere; needs a window.
        rank: Who goes first: "inattentive" by P_x, "similar" by the cosine to the keeper, "both" by the sum.
            Without a window only "inattentive" is possible.
        age_weight: Weight of the age term (α_d of the paper).
        age_sign: -1 makes tokens merged for long less likely to be merged again, +1 more likely.
        probe_queries: How many strided image queries estimate the attention received; None for all of
            them. Read by whoever fills `TokenView.attention`, see `sdtm_fx.attention_score`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"ages", "attention"})

    name: Literal["idm"] = "idm"
    window: WindowSize | None = None
    radius: Radius | None = None
    rank: Rank = "inattentive"
    age_weight: Weight = 0.05
    age_sign: Literal[-1, 1] = -1
    probe_queries: Count | None = 256

    def _check_options(self) -> None:
        check_age_sign(self.age_sign, self.name)
        if self.window is not None:
            check_window(self.window, self.name)
        elif self.radius is not None or self.rank != "inattentive":
            raise OptionError(
                f"idm: found radius {self.radius} and rank {self.rank!r} without a window; "
                "accepted with a window such as (2, 2) only"
            )
        if self.radius is not None:
            check_radius(self.radius, self.name)

    def capacity(self, grid: TokenGrid) -> int:
        """Return all tokens but one, or with windows (K - 1) times their number."""
        if self.window is None:
            return max(tokens_on(grid) - 1, 0)
        windows = Windows(grid, self.window)
        return windows.count * (windows.size - 1)

    def wants(self) -> frozenset[str]:
        """Return "attention", and "ages" unless their weight is zero."""
        return self.needs if self.age_weight else frozenset({"attention"})

    def probes(self) -> int | None:
        """Return `probe_queries`."""
        return self.probe_queries

    def score(self, view: TokenView) -> Tensor:
        """Return P_x of every token, [B, N] float32; the largest go first.

        Raises:
            PlanError: The view holds no attention.
        """
        if view.attention is None:
            raise PlanError("idm: found no attention; accepted [batch, tokens], what each token received")
        received = view.attention.float()
        inattentive = 1 - received / received.amax(dim=1, keepdim=True).clamp_min(1e-12)
        if view.ages is None or self.age_weight == 0:
            return inattentive
        return inattentive + self.age_sign * self.age_weight * relative_ages(view.ages)

    def _plan(self, view: TokenView, remove: int) -> MergePlan:
        score, tokens = self.score(view), view.metric.shape[1]
        if self.window is None:
            ranked = torch.argsort(score, dim=1, descending=True, stable=True)
            # Raster order on both sides, so that equal cosines go to the keeper that comes first.
            sources, keepers = ranked[:, :remove].sort(dim=1).values, ranked[:, remove:].sort(dim=1).values
            cosine, partner = best_match(view.metric, sources, keepers)
            return plan_best(sources, partner, cosine, remove, tokens)
        windows = Windows(view.grid, self.window)
        place = windows.split(score).argmin(dim=2)
        keepers, sources = split_windows(windows, place)
        if self.radius is None:
            cosine, partner = best_match(view.metric, sources, keepers)
        else:
            cosine, partner = best_neighbour(view.metric, windows, keepers, self.radius)
            cosine, partner = cosine.gather(1, sources), partner.gather(1, sources)
        inattentive = score.gather(1, sources)
        rank = {"inattentive": inattentive, "similar": cosine, "both": inattentive + cosine}[self.rank]
        return plan_best(sources, partner, rank, remove, tokens)
