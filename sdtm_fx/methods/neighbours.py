"""The most similar absorbing token among nearby windows, in work that is linear in the number of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sdtm_fx.rows import take_rows
from sdtm_fx.similarity import inverse_norms, without_autocast
from sdtm_fx.windows import Windows

_TILE = 8
"""Most window columns of a tile: few enough that little is compared in vain, enough for a matrix product."""


@dataclass(frozen=True)
class _Tiles:
    """Rows of windows cut into tiles of equal width, and the windows that each tile can reach.

    Rows are counted through all frames; what a tile can reach are windows of the same frames.

    The last tile may stick out over the last window; what is found there is cut off again.

    Attributes:
        windows: The windows.
        radius: How many windows away a token looks, in both directions.
        device: Where the tables are made; nothing is cached and nothing synchronises.
    """

    windows: Windows
    radius: int
    device: torch.device

    @property
    def count(self) -> int:
        """Tiles in a row of windows."""
        return -(-self.windows.columns // _TILE)

    @property
    def across(self) -> int:
        """Windows in a tile."""
        return -(-self.windows.columns // self.count)

    @property
    def span(self) -> int:
        """Window columns that a tile looks at."""
        return min(self.across + 2 * self.radius, self.windows.columns)

    @property
    def rows(self) -> int:
        """Rows of windows, of all frames."""
        return self.windows.layers * self.windows.rows

    def tokens(self) -> Tensor:
        """Tokens of every tile in raster order, [rows, tiles, tokens of a tile] int64."""
        width = self.windows.edges[-1]
        column = self._token_columns().view(self.count, 1, self.across * width)
        # What sticks out repeats the last column.
        last = self.windows.covered[-1] - 1
        inside = torch.where(column > last, last, column)
        return (self._lines().view(self.rows, 1, -1, 1) * self.windows.grid[-1] + inside).flatten(2)

    def _lines(self) -> Tensor:
        """Rows of tokens, counted through all frames, by the row of windows that they are in."""
        frames, (height, tall) = self._window_frames(), (self.windows.edges[-2], self.windows.grid[-2])
        line = torch.arange(self.windows.rows * height, device=self.device)
        if self.windows.layers * frames == 1:
            return line
        frame = torch.arange(self.windows.layers * frames, device=self.device).view(-1, 1, frames, 1)
        return frame * tall + line.view(1, self.windows.rows, 1, height)

    def first(self) -> Tensor:
        """First window column that each tile looks at, [tiles] int64."""
        start = torch.arange(self.count, device=self.device) * self.across - self.radius
        last = self.windows.columns - self.span
        # Not clamp: see `Windows.nearby_row`.
        start = torch.where(start > last, last, start)
        return torch.where(start < 0, 0, start)

    def reachable(self) -> Tensor:
        """Windows that each tile looks at, [rows, tiles, (2 · radius + 1) · span] int64, row by row."""
        row = torch.arange(self.rows, device=self.device)[:, None]
        shift = torch.arange(-self.radius, self.radius + 1, device=self.device)
        near = self.windows.nearby_row(row, shift).view(-1, 1, 2 * self.radius + 1, 1)
        column = (self.first()[:, None] + torch.arange(self.span, device=self.device)).view(self.count, 1, -1)
        return (near * self.windows.columns + column).flatten(2)

    def too_far(self) -> Tensor:
        """Which of the columns that a tile looks at a token must not join, [tiles, tokens, windows] bool."""
        own = self._token_columns().div(self.windows.edges[-1], rounding_mode="floor")
        seen = self.first()[:, None] + torch.arange(self.span, device=self.device)
        far = (own[:, :, None] - seen[:, None, :]).abs() > self.radius
        return far.repeat(1, self._window_frames() * self.windows.edges[-2], 2 * self.radius + 1)

    def window_of(self, place: Tensor) -> Tensor:
        """Windows by their places among the reachable ones, both [B, rows, tiles, tokens] int64."""
        row = torch.arange(self.rows, device=self.device).view(-1, 1, 1)
        row = self.windows.nearby_row(row, place.div(self.span, rounding_mode="floor") - self.radius)
        return row * self.windows.columns + self.first()[:, None] + place.remainder(self.span)

    def raster(self, values: Tensor) -> Tensor:
        """Lay [B, rows, tiles, tokens] out as the grid has them, zero beyond the last window: [B, n]."""
        frames, (height, width) = self._window_frames(), self.windows.edges[-2:]
        tall, wide = self.windows.covered[-2:]
        right, below = self.windows.grid[-1] - wide, self.windows.grid[-2] - tall
        if self.windows.layers * frames == 1:
            grid = values.unflatten(3, (height, self.across * width)).transpose(2, 3)
            grid = grid.reshape(values.shape[0], tall, -1)[..., :wide]
            return functional.pad(grid, (0, right)).flatten(1)
        grid = values.unflatten(3, (frames, height, self.across * width))
        grid = grid.unflatten(1, (self.windows.layers, self.windows.rows)).permute(0, 1, 4, 2, 5, 3, 6)
        grid = grid.reshape(values.shape[0], self.windows.layers * frames, tall, -1)[..., :wide]
        return functional.pad(grid, (0, right, 0, below)).flatten(1)

    def _window_frames(self) -> int:
        return math.prod(self.windows.edges[:-2])

    def _token_columns(self) -> Tensor:
        width = self.windows.edges[-1]
        return torch.arange(self.count * self.across * width, device=self.device).view(self.count, -1)


def best_neighbour(metric: Tensor, windows: Windows, targets: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Find the most cosine-similar target of every token among the windows up to `radius` away.

    A row of windows is cut into tiles. The product of a tile with the targets around it is one small matrix
    product, from which columns out of reach are masked, so that work and memory are linear in the tokens.

    Args:
        metric: [B, N, D] float.
        windows: The windows.
        targets: [P, windows] int64 tokens, one per window; P is B or 1.
        radius: How many windows away a token looks, in both directions.

    Returns:
        Cosine [B, n] float32, and the target token [B, n] int64 (the first on ties), for the first n
        tokens: all those in rows, or with frames in frames, that windows cover. Tokens beyond the last window
        hold nothing of use.
    """
    batch, _, width = metric.shape
    tiles = _Tiles(windows, radius, metric.device)
    leading = (batch, tiles.rows, tiles.count, -1)
    x = take_rows(metric, tiles.tokens().reshape(1, -1)).float().view(*leading, width)
    beside = targets.index_select(1, tiles.reachable().flatten())
    goal = take_rows(metric, beside).float().view(*leading, width)
    with without_autocast(metric.device):
        table = (x @ goal.mT) * inverse_norms(goal)[..., None, :]
    cosine, place = table.masked_fill(tiles.too_far(), -torch.inf).max(dim=4)
    token = targets.expand(batch, -1).gather(1, tiles.window_of(place).flatten(1)).view_as(place)
    return tiles.raster(cosine * inverse_norms(x)), tiles.raster(token)
