"""Local match: like FIDM, but a token only looks at the windows around its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sdtm_fx.grids import TokenGrid
from sdtm_fx.methods.ages import check_age_sign, relative_ages
from sdtm_fx.methods.base import Method, Radius, TokenView, Weight, WindowSize, check_radius, check_window
from sdtm_fx.methods.matching import AGED, Target, choose_targets, plan_best, split_windows
from sdtm_fx.methods.neighbours import best_neighbour
from sdtm_fx.plan import MergePlan
from sdtm_fx.windows import Windows


@dataclass(frozen=True, kw_only=True)
class LocalMatch(Method):
    """Merges the tokens that are most similar to an absorbing token of a neighbouring window.

    One token per window absorbs. Every other token is compared with the absorbing tokens of the
    (2 · radius + 1)² windows around it; there is no table of all pairs. Tokens that fill no window stay as
    they are. Slots are in raster order of the tokens that represent them.

    Formula:
        Token x goes to the absorbing token t of largest cos(x, t) among (2 · radius + 1)² windows; the tokens of
        largest cos(x, t) + age_sign · age_weight · P_fre go.

    Use:
        The late steps, where detail is drawn, and any step where windows are too coarse; linear in the tokens.

    Attributes:
        window: Height and width of a window, in tokens.
        radius: How many windows away a token looks; 0 stays inside its own window.
        target: Which token of a window absorbs.
        age_weight: Weight of the age term that is added to the cosine of a token.
        age_sign: -1 makes tokens merged for long less likely to be merged again, +1 more likely.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"ages"})

    name: Literal["local_match"] = "local_match"
    window: WindowSize = (2, 2)
    radius: Radius = 1
    target: Target = "oldest"
    age_weight: Weight = 0.0
    age_sign: Literal[-1, 1] = -1

    def _check_options(self) -> None:
        check_window(self.window, self.name)
        check_radius(self.radius, self.name)
        check_age_sign(self.age_sign, self.name)

    def capacity(self, grid: TokenGrid) -> int:
        """Return (K - 1) times the number of windows."""
        windows = Windows(grid, self.window)
        return windows.count * (windows.size - 1)

    def wants(self) -> frozenset[str]:
        """Return "ages" when they decide which token of a window absorbs, or have a weight."""
        return self.needs if self.target in AGED or self.age_weight else frozenset()

    def _plan(self, view: TokenView, remove: int) -> MergePlan:
        windows = Windows(view.grid, self.window)
        targets, others = split_windows(windows, choose_targets(view, windows, self.target))
        cosine, token = best_neighbour(view.metric, windows, targets, self.radius)
        sources = others.expand(cosine.shape[0], -1)
        rank, partner = cosine.gather(1, sources), token.gather(1, sources)
        if view.ages is not None and self.age_weight:
            ages = relative_ages(view.ages).gather(1, sources)
            rank = rank + self.age_sign * self.age_weight * ages
        return plan_best(sources, partner, rank, remove, view.metric.shape[1])
