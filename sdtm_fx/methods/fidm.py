"""FIDM: merge the most alike tokens into one token per window (SDTM as released, detail stage)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sdtm_fx.grids import TokenGrid
from sdtm_fx.methods.base import Method, TokenView, WindowSize, check_window, row_of_cells
from sdtm_fx.methods.matching import AGED, Target, best_match, choose_targets, plan_best, split_windows
from sdtm_fx.plan import MergePlan
from sdtm_fx.windows import Windows


@dataclass(frozen=True, kw_only=True)
class FIDM(Method):
    """Attention-free detail merging: one token per window absorbs, the most similar others are merged.

    Every other token of a window is compared with the absorbing tokens of all windows, which costs
    3/16 · N² · D multiply-accumulates for 2x2 windows. Tokens that fill no window stay as they are. Slots
    are in raster order of the tokens that represent them.

    Formula:
        Token x goes to the absorbing token t of largest cos(x, t) among all windows; the tokens of largest
        cos(x, t) go.

    Use:
        To compare with the released code. `local_match` looks at fewer pairs.

    Attributes:
        window: Height and width of a window, in tokens.
        target: Which token of a window absorbs.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"ages"})

    name: Literal["fidm"] = "fidm"
    window: WindowSize = (2, 2)
    target: Target = "oldest"

    def _check_options(self) -> None:
        check_window(self.window, self.name)

    def capacity(self, grid: TokenGrid) -> int:
        """Return (K - 1) times the number of windows."""
        windows = Windows(grid, self.window)
        return windows.count * (windows.size - 1)

    def needs_grid(self) -> str | None:
        """Return None for cells within a row, which may be any row of tokens."""
        return row_of_cells(self.window)

    def wants(self) -> frozenset[str]:
        """Return "ages" when they decide which token of a window absorbs."""
        return self.needs if self.target in AGED else frozenset()

    def _plan(self, view: TokenView, remove: int) -> MergePlan:
        windows = Windows(view.grid, self.window)
        targets, sources = split_windows(windows, choose_targets(view, windows, self.target))
        cosine, partner = best_match(view.metric, sources, targets)
        return plan_best(sources, partner, cosine, remove, view.metric.shape[1])
