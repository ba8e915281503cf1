"""Token cache: compute the tokens that matter or have waited long, take all others as they were (ToCa)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from sdtm_fx.errors import PlanError
from sdtm_fx.grids import TokenGrid, join_blocks, tokens_on
from sdtm_fx.hashing import hash_words
from sdtm_fx.kept_plan import plan_of_kept
from sdtm_fx.methods.base import Count, Method, OptionError, TokenView, Weight, WindowSize, check_window
from sdtm_fx.plan import MergePlan
from sdtm_fx.windows import Windows

_NUMBERS = 1 << 24  # 24 bits are what float32 holds exactly


@dataclass(frozen=True, kw_only=True)
class TokenCache(Method):
    """Token-wise feature caching (ToCa, Zou et al. 2024): some tokens are computed, and nothing is averaged.

    The tokens of largest score are computed alone, as if the others were not there. Every other token gets what
    `reuse` has stored for it, so a recipe has to say ``reuse`` with ``weight: 0``. With ``update: tokens`` that is its
    value of the last step in which it was computed, as in ToCa; with ``update: dense``, of the last dense step. Order
    0 copies it, order 1 draws a line through the last two. The ratio is the part of the tokens that is not computed:
    ToCa's refresh ratio of 0.3 is a ratio of 0.7.

    The score has four parts in the paper. s1 is the attention that a token receives, scaled to length 1 over the
    tokens (as in the released code). s3 is the number of steps since the token was computed, over the `interval`. s4
    adds `bonus` times its own score to the best token of each window, at odd edges of smaller ones too. s2, the
    entropy of cross-attention to text (the one score of the released PixArt code, beside s3 and s4), is left out:
    attention to a text alone cannot be read here.

    What differs from the released code: attention is read in the step itself, in a block whose attention is dense, and
    not kept from the last dense step; so attention can be a site of the stage with ``rank: random`` only, and then
    computed tokens attend to each other and to text alone. The released code computes no self-attention between dense
    steps. There every site has tokens of its own; here all sites of a block share the plan of the first. There the
    value is stored in front of the gate of the residual; here behind it, unless ``passes.sink_unmerge`` is false. And
    there the ratio follows step and depth; here `ratio` and `layers` do.

    Formula:
        S = s1 + age_weight · age / interval, with s1 = a / ‖a‖ and aₓ the attention that token x receives; the best
        token of each window gets (1 + bonus) · S. The tokens of smallest S go, and keep what they had.

    Use:
        With many steps, in the feed-forward, where features change slowly and unevenly: between `skip`, which computes
        nothing, and merging. ``rank: random`` costs no attention map.

    Attributes:
        rank: What s1 is: "attention" received, or a number from 0 to 1 drawn by hash ("random"), another one in every
            step and plan group and the same for the whole batch (for comparison, and where attention is to be merged).
        age_weight: Weight of s3; a token that has waited is more likely to be computed.
        interval: What ages are divided by: steps from one dense step to the next, `keep_dense.every_steps`.
        bonus: Weight of s4.
        window: Height and width of a window in tokens.
        probe_queries: How many strided image queries estimate the attention received; None for all of them, as
            published.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"ages", "attention"})
    caches: ClassVar[bool] = True

    name: Literal["token_cache"] = "token_cache"
    rank: Literal["attention", "random"] = "attention"
    age_weight: Weight = 0.25
    interval: Count = 3
    bonus: Weight = 0.6
    window: WindowSize = (2, 2)
    probe_queries: Count | None = 256

    def _check_options(self) -> None:
        check_window(self.window, self.name)
        if self.interval < 1:
            raise OptionError(f"token_cache: found interval {self.interval}; accepted 1 or more steps")

    def capacity(self, grid: TokenGrid) -> int:
        """Return all tokens but one."""
        return max(tokens_on(grid) - 1, 0)

    def wants(self) -> frozenset[str]:
        """Return "attention" unless numbers are drawn, and "ages" unless their weight is zero."""
        unread = set() if self.rank == "attention" else {"attention"}
        return self.needs - unread - (set() if self.age_weight else {"ages"})

    def probes(self) -> int | None:
        """Return `probe_queries`."""
        return self.probe_queries

    def score(self, view: TokenView) -> Tensor:
        """Return S of every token, the bonus included, [B, N] float32; the largest are computed.

        Raises:
            PlanError: The view holds no attention, and `rank` asks for it.
        """
        score = self._importance(view)
        if view.ages is not None and self.age_weight:
            score = score + view.ages.float() * (self.age_weight / self.interval)
        return torch.where(best_of_windows(score, view.grid, self.window), score * (1 + self.bonus), score)

    def _importance(self, view: TokenView) -> Tensor:
        batch, tokens = view.metric.shape[:2]
        if self.rank == "random":
            words = hash_words(torch.arange(tokens, device=view.metric.device), view.salt)
            return ((words >> 8).float() / _NUMBERS).expand(batch, -1)
        if view.attention is None:
            raise PlanError(
                "token_cache: found no attention; accepted [batch, tokens], what each token received, or rank 'random'"
            )
        return functional.normalize(view.attention.float(), dim=1)

    def _plan(self, view: TokenView, remove: int) -> MergePlan:
        ranked = torch.argsort(self.score(view), dim=1, descending=True, stable=True)
        tokens = view.metric.shape[1]
        return plan_of_kept(ranked[:, : tokens - remove].sort(dim=1).values, tokens)


def best_of_windows(score: Tensor, grid: TokenGrid, window: TokenGrid) -> Tensor:
    """Return which tokens score best in their window, the first on ties; windows at odd edges are smaller.

    Args:
        score: [B, N] float.
        grid: Height and width in tokens, behind the frames if there are some.
        window: Height and width of a window, behind its frames if it has more than one.

    Returns:
        [B, N] bool.
    """
    edges = Windows(grid, window).edges
    beyond = [-side % edge for side, edge in zip(grid, edges, strict=True)]
    padding = [amount for missing in reversed(beyond) for amount in (0, missing)]
    padded = functional.pad(score.unflatten(1, grid), padding, value=-torch.inf)
    windows = Windows(tuple(padded.shape[1:]), window)
    blocks = windows.split(padded.flatten(1))
    best = blocks.argmax(dim=2, keepdim=True) == torch.arange(windows.size, device=score.device)
    whole = join_blocks(best, best[:, :0, 0], windows.grid, windows.edges, windows.counts)
    whole = whole.unflatten(1, windows.grid)
    for axis, side in enumerate(grid, start=1):
        whole = whole.narrow(axis, 0, side)
    return whole.flatten(1)
