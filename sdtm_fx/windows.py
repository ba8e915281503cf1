"""Windows over a token grid: which tokens they hold, what is left over, which windows are neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Non-overlapping windows that tile a token grid from its top-left corner.

    Rows and columns that fill no window are left over. Every table is computed from static sizes on the
    device that asks for it, so nothing is cached and nothing synchronises.

    Attributes:
        grid: Height and width of the grid, in tokens.
        window: Height and width of a window, in tokens.
    """

    grid: tuple[int, int]
    window: tuple[int, int]

    @property
    def rows(self) -> int:
        """Number of window rows."""
        return self.grid[0] // self.window[0]

    @property
    def columns(self) -> int:
        """Number of window columns."""
        return self.grid[1] // self.window[1]

    @property
    def count(self) -> int:
        """Number of windows."""
        return self.rows * self.columns

    @property
    def size(self) -> int:
        """Number of tokens in a window, K."""
        return self.window[0] * self.window[1]

    @property
    def covered(self) -> tuple[int, int]:
        """Height and width, in tokens, of the part of the grid that the windows cover."""
        return self.rows * self.window[0], self.columns * self.window[1]

    def split(self, values: Tensor) -> Tensor:
        """Lay per-token values out by window: [B, N] to [B, count, K], both in raster order."""
        tall, wide = self.covered
        blocks = values.unflatten(1, self.grid)[:, :tall, :wide]
        blocks = blocks.unflatten(2, (self.columns, self.window[1])).unflatten(1, (self.rows, self.window[0]))
        return blocks.transpose(2, 3).reshape(values.shape[0], self.count, self.size)

    def tokens(self, device: torch.device) -> Tensor:
        """Return the tokens of every window, [count, K] int64, windows and tokens in raster order."""
        return self.split(torch.arange(self.grid[0] * self.grid[1], device=device)[None])[0]

    def token_at(self, window: Tensor, place: Tensor) -> Tensor:
        """Return the token at a place (0 to K - 1, raster order) of a window; the arguments broadcast.

        Arithmetic instead of a look-up in `tokens`, so that a compiler can fuse it.
        """
        height, width = self.window
        row = _div(window, self.columns) * height + _div(place, width)
        column = window.remainder(self.columns) * width + place.remainder(width)
        return row * self.grid[1] + column

    def leftovers(self, device: torch.device) -> Tensor:
        """Return the tokens that no window holds, [N - count * K] int64, in raster order."""
        tall, wide = self.covered
        numbers = torch.arange(self.grid[0] * self.grid[1], device=device).view(self.grid)
        return torch.cat([numbers[:tall, wide:].reshape(-1), numbers[tall:].reshape(-1)])

    def nearby_row(self, row: Tensor, shift: Tensor) -> Tensor:
        """Return the window row that is `shift` away, or the row itself where that is off the grid."""
        # Not clamp: inductor (torch 2.13) fails on index arithmetic with a maximum in it.
        other = row + shift
        return torch.where((other >= 0) & (other < self.rows), other, row)


def _div(number: Tensor, by: int) -> Tensor:
    return number.div(by, rounding_mode="floor")
