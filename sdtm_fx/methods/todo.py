"""ToDo: tokens on a strided grid, whatever they hold (Smith et al. 2024). Its home are keys and values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdtm_fx.grids import TokenGrid, coarser, tokens_on
from sdtm_fx.methods.base import Count, Method, OptionError, TokenView
from sdtm_fx.methods.uniform import spread_order
from sdtm_fx.plan import MergePlan, plan_from_parents
from sdtm_fx.windows import Windows


@dataclass(frozen=True, kw_only=True)
class ToDo(Method):
    """Strided downsampling: every cell of factor x factor tokens is represented by the token in its middle.

    Frames keep their number: cells lie within one.

    A slot holds the value of that token alone (``reduce: mean`` in a stage averages instead), so keys keep the
    position that they were rotated by. The paper reduces keys and values and leaves queries dense, which is a site with
    ``merge: keys``; at an ordinary site the tokens of a cell get the output of their representative.

    Source: paper and released code, which sample keys and values by nearest-exact interpolation. Where a side is
    no multiple of the factor they are silent; taken here is nearest-exact interpolation to ceil(side / factor)
    positions, so that no token is further than half a cell from its representative: cells differ by one token at
    most, and ceil(h / f) · ceil(w / f) tokens are kept. The released code's schedule over the steps (none at the
    end) is what stages are for, and its choice of levels by width is what sites are for.

    Below the full ratio only some tokens go: those of cells that are spread evenly, in the order of `uniform`.
    To have the whole grid strided at any size, write ``ratio: {curve: full}``. Slots are in raster order.

    Formula:
        Slot (i, j) of a grid of ceil(h / f) · ceil(w / f) holds the token in the middle of its cell; as keys, softmax
        (Q K_kept') V_kept.

    Use:
        At attention sites with ``merge: keys`` and ``ratio: {curve: full}``, at high resolutions: attention costs
        1 / f² there, and no plan is searched.

    Attributes:
        factor: Tokens along each side of a cell, f; the full ratio is 1 - 1 / f².
    """

    name: Literal["todo"] = "todo"
    factor: Count = 2

    def _check_options(self) -> None:
        if self.factor < 2:
            raise OptionError(f"{self.name}: found factor {self.factor}; accepted 2 or more tokens per side")

    def cells(self, grid: TokenGrid) -> TokenGrid:
        """Return how many cells a grid has, along its height and its width; frames stay as they are."""
        return coarser(grid, self.factor)

    def capacity(self, grid: TokenGrid) -> int:
        """Return N - frames · ceil(h / f) · ceil(w / f)."""
        return tokens_on(grid) - tokens_on(self.cells(grid))

    def _plan(self, view: TokenView, remove: int) -> MergePlan:
        device = view.metric.device
        batch, tokens, _ = view.metric.shape
        cells, (height, width) = self.cells(view.grid), view.grid[-2:]
        rows, columns = cells[-2:]
        row, middle_row = _cells_of(height, rows, device)
        column, middle_column = _cells_of(width, columns, device)
        frame = torch.arange(math.prod(view.grid[:-2]), device=device)[:, None]
        cell = (row[:, None] * columns + column).flatten() + frame * (rows * columns)
        represents = (middle_row[:, None] * width + middle_column).flatten() + frame * (height * width)
        # The place of every cell in the order in which cells are reduced.
        place = torch.argsort(spread_order(Windows(cells, (1, 1)), device), stable=True)
        own = torch.arange(tokens, device=device)
        parent = represents.flatten()[cell.flatten()]
        rank = torch.where(parent == own, tokens_on(cells), place[cell.flatten()])
        gone = torch.argsort(rank, stable=True)[:remove]
        joined = own.scatter(0, gone, parent[gone])
        plan = plan_from_parents(joined[None], tokens - remove)
        return plan.with_tensors(t.expand(batch, -1) for t in plan.tensors()).reduced_by("prune")


def _cells_of(side: int, cells: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The cell of every position along a side [side], and the position in the middle of every cell [cells]."""
    position, cell = torch.arange(side, device=device), torch.arange(cells, device=device)
    middle = ((2 * cell + 1) * side).div(2 * cells, rounding_mode="floor")
    return ((2 * position + 1) * cells).div(2 * side, rounding_mode="floor"), middle
