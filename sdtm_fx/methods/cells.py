"""What the methods of ToMeSD's family share: one absorbing token per cell, and the matching to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import StrictBool
from torch import Tensor

from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.methods.base import Method, TokenView, WindowSize, check_window, row_of_cells
from sdtm_fx.methods.matching import best_match, choose_targets, plan_best, split_windows
from sdtm_fx.plan import MergePlan
from sdtm_fx.windows import Windows


@dataclass(frozen=True, kw_only=True)
class CellMatching(Method):
    """One token per cell absorbs; of all others, the most similar to any absorbing token are merged.

    Tokens outside whole cells may be merged but absorb nothing, as in ToMeSD. The draw comes from a hash
    of the salt and the cell, so it is the same for the whole batch and repeats with the seed. Slots are in
    raster order of the tokens that represent them.

    Attributes:
        window: Height and width of a cell, in tokens.
        random: Draw the absorbing token; otherwise it is the top-left one.
    """

    window: WindowSize = (2, 2)
    random: StrictBool = True

    def _check_options(self) -> None:
        check_window(self.window, self.name)

    def capacity(self, grid: TokenGrid) -> int:
        """Return the number of tokens that do not absorb; nothing goes on a grid without a whole cell."""
        cells = Windows(grid, self.window).count
        return tokens_on(grid) - cells if cells else 0

    def needs_grid(self) -> str | None:
        """Return None for cells within a row, which may be any row of tokens."""
        return row_of_cells(self.window)

    def match(self, view: TokenView) -> tuple[Tensor, Tensor, Tensor]:
        """Return who may go [1, S], the absorbing token each would join [B, S], and their cosine [B, S]."""
        windows = Windows(view.grid, self.window)
        target = choose_targets(view, windows, "random" if self.random else "first")
        targets, others = split_windows(windows, target)
        sources = torch.cat([others, windows.leftovers(view.metric.device)[None]], dim=1)
        cosine, partner = best_match(view.metric, sources, targets)
        return sources, partner, cosine

    def _plan(self, view: TokenView, remove: int) -> MergePlan:
        sources, partner, cosine = self.match(view)
        return plan_best(sources, partner, cosine, remove, view.metric.shape[1])
