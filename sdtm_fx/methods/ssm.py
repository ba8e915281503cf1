"""SSM: merge whole windows whose tokens are alike (SDTM, structure stage)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import StrictBool
from torch import Tensor

from sdtm_fx.grids import TokenGrid
from sdtm_fx.hashing import hash_words
from sdtm_fx.methods.ages import check_age_sign, relative_ages
from sdtm_fx.methods.base import Method, TokenView, Weight, WindowSize, check_window
from sdtm_fx.methods.whole_windows import plan_windows
from sdtm_fx.plan import MergePlan
from sdtm_fx.similarity import window_mean, window_similarity
from sdtm_fx.windows import Windows


@dataclass(frozen=True, kw_only=True)
class SSM(Method):
    """Similarity-prioritised structure merging: the most alike windows become one token each.

    The score of a window is P_sim + age_sign · age_weight · P_fre, with P_sim the mean cosine of its pairs
    and P_fre its mean age over the mean age of the sample. Tokens of an odd row or column that fill no
    window stay as they are. Slots: tokens of unmerged windows, window by window, then leftover tokens,
    then merged windows, whose position is their top-left token.

    Formula:
        P_sim = (‖Σ x̂ᵢ‖² - K) / (K (K - 1)) over the K unit tokens x̂ᵢ of a window; the windows of largest
        P_sim + age_sign · age_weight · P_fre merge, (K - 1) tokens fewer for each.

    Use:
        The noisy early steps, in attention and feed-forward: layout is decided there, in patches.

    Attributes:
        window: Height and width of a window, in tokens.
        select: Which windows go first: the most alike ("similar"), as the paper has it, or for comparison
            those drawn by hash ("random": P_sim is then a number from 0 to 1, the same for the whole batch)
            or the least alike ("dissimilar": P_sim is then negated).
        age_weight: Weight of the age term (α_s of the paper).
        age_sign: -1 makes windows that were merged for long less likely to be merged again; +1 more
            likely, as the released code does.
        include_diagonal: Average the cosine over all K² pairs, as the released code does.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"ages"})

    name: Literal["ssm"] = "ssm"
    window: WindowSize = (2, 2)
    select: Literal["similar", "random", "dissimilar"] = "similar"
    age_weight: Weight = 0.05
    age_sign: Literal[-1, 1] = -1
    include_diagonal: StrictBool = False

    def _check_options(self) -> None:
        check_window(self.window, self.name)
        check_age_sign(self.age_sign, self.name)

    def capacity(self, grid: TokenGrid) -> int:
        """Return (K - 1) times the number of windows."""
        return Windows(grid, self.window).count * self.quantum()

    def quantum(self) -> int:
        """Return K - 1: a window is merged whole."""
        return math.prod(self.window) - 1

    def wants(self) -> frozenset[str]:
        """Return "ages" unless their weight is zero."""
        return self.needs if self.age_weight else frozenset()

    def score(self, view: TokenView) -> Tensor:
        """Return the merge score of every window, [B, windows] float32."""
        windows = Windows(view.grid, self.window)
        score = self._likeness(view, windows)
        if view.ages is None or self.age_weight == 0:
            return score
        return score + self.age_sign * self.age_weight * window_mean(relative_ages(view.ages), windows)

    def _likeness(self, view: TokenView, windows: Windows) -> Tensor:
        if self.select == "random":
            words = hash_words(torch.arange(windows.count, device=view.metric.device), view.salt)
            # 24 bits are what float32 holds exactly.
            return ((words >> 8).float() / (1 << 24)).expand(view.metric.shape[0], -1)
        alike = window_similarity(view.metric, windows, include_diagonal=self.include_diagonal)
        return alike if self.select == "similar" else -alike

    def count_above(self, view: TokenView, threshold: float) -> Tensor:
        """Return how many tokens go when every window with a score of `threshold` or more is merged (SDTM*).

        Returns:
            [B] int64, on the device of the tokens.
        """
        self._check_view(view)
        return (self.score(view) >= threshold).sum(dim=1) * self.quantum()

    def _plan(self, view: TokenView, remove: int) -> MergePlan:
        # A stable sort gives equal scores to the window that comes first; topk does not promise that.
        ranked = torch.argsort(self.score(view), dim=1, descending=True, stable=True)
        return plan_windows(ranked, Windows(view.grid, self.window), remove // self.quantum())
