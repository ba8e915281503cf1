"""Uniform downsampling: evenly spread cells of the grid become one token each, whatever they hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdtm_fx.grids import TokenGrid
from sdtm_fx.methods.base import Method, TokenView, WindowSize, check_window
from sdtm_fx.methods.whole_windows import plan_windows
from sdtm_fx.plan import MergePlan
from sdtm_fx.windows import Windows

# The two-dimensional golden ratio: 1/p and 1/p^2 of 2**32 with p^3 = p + 1 (the R2 sequence, Roberts 2018).
_STRIDES = (3242174889, 2447445414)
_MODULUS = 1 << 32


@dataclass(frozen=True, kw_only=True)
class Uniform(Method):
    """Spatial downsampling on a regular grid: destinations at a fixed stride, one per cell.

    The tokens of a merged cell are averaged into its destination, the top-left one, and get its value back:
    mean pooling and nearest-neighbour upsampling. Below the full ratio only some cells are merged. Which ones
    follows from their place alone, in the order of a low-discrepancy lattice, so that any number of them is
    spread evenly; the same cells at every step. Tokens that fill no cell stay as they are. Slots are in the
    order of `ssm`.

    Formula:
        Cell (r, c) of the grid merges if its place in the order of frac(r / p + c / p²), p³ = p + 1, is early enough.

    Use:
        To see what looking at the tokens is worth; it costs nothing.

    Attributes:
        window: Height and width of a cell, in tokens: the strides of the destinations.
    """

    name: Literal["uniform"] = "uniform"
    window: WindowSize = (2, 2)

    def _check_options(self) -> None:
        check_window(self.window, self.name)

    def capacity(self, grid: TokenGrid) -> int:
        """Return (K - 1) times the number of cells."""
        return Windows(grid, self.window).count * self.quantum()

    def quantum(self) -> int:
        """Return K - 1: a cell is merged whole."""
        return math.prod(self.window) - 1

    def _plan(self, view: TokenView, remove: int) -> MergePlan:
        cells = Windows(view.grid, self.window)
        ranked = spread_order(cells, view.metric.device)[None].expand(view.metric.shape[0], -1)
        return plan_windows(ranked, cells, remove // self.quantum())


def spread_order(cells: Windows, device: torch.device) -> Tensor:
    """Return all cells in an order of which every beginning is spread evenly, [cells] int64."""
    cell = torch.arange(cells.count, device=device)
    row, column = cell.div(cells.columns, rounding_mode="floor"), cell.remainder(cells.columns)
    lattice = (row * _STRIDES[0] + column * _STRIDES[1]).remainder(_MODULUS)
    return torch.argsort(lattice, stable=True)
