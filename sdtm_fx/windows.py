"""Windows over a token grid: which tokens they hold, what is left over, which windows are neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdtm_fx.errors import PlanError
from sdtm_fx.grids import TokenGrid, outside_blocks, show_grid, split_blocks, tokens_on


@dataclass(frozen=True)
class Windows:
    """Non-overlapping windows that tile a token grid from its first corner.

    A window of two sides on a grid with frames lies within one frame. Rows, columns and frames that fill no window
    are left over. Every table is computed from static sizes on the device that asks for it, so nothing is cached and
    nothing synchronises.

    Attributes:
        grid: Height and width of the grid in tokens, behind the frames where there are some.
        window: Height and width of a window in tokens, behind its frames if it has more than one.

    Raises:
        PlanError: The window has frames, and the grid has none.
    """

    grid: TokenGrid
    window: TokenGrid

    def __post_init__(self) -> None:
        """Check that the window is no larger in kind than the grid."""
        if len(self.window) > len(self.grid):
            raise PlanError(
                f"found window {show_grid(self.window)} (frames, height, width) on a grid of {show_grid(self.grid)}, "
                "which has no frames; accepted (height, width)"
            )

    @property
    def edges(self) -> TokenGrid:
        """Sides of a window, one for each side of the grid."""
        return (*[1] * (len(self.grid) - len(self.window)), *self.window)

    @property
    def counts(self) -> TokenGrid:
        """Number of windows along each side of the grid."""
        return tuple(side // edge for side, edge in zip(self.grid, self.edges, strict=True))

    @property
    def rows(self) -> int:
        """Number of window rows of a frame."""
        return self.counts[-2]

    @property
    def columns(self) -> int:
        """Number of window columns."""
        return self.counts[-1]

    @property
    def layers(self) -> int:
        """Number of windows over time; 1 where there are no frames."""
        return math.prod(self.counts[:-2])

    @property
    def count(self) -> int:
        """Number of windows."""
        return math.prod(self.counts)

    @property
    def size(self) -> int:
        """Number of tokens in a window, K."""
        return math.prod(self.window)

    @property
    def covered(self) -> TokenGrid:
        """Sides, in tokens, of the part of the grid that the windows cover."""
        return tuple(count * edge for count, edge in zip(self.counts, self.edges, strict=True))

    def split(self, values: Tensor) -> Tensor:
        """Lay per-token values out by window: [B, N] to [B, count, K], both in raster order."""
        return split_blocks(values, self.grid, self.edges, self.counts)

    def tokens(self, device: torch.device) -> Tensor:
        """Return the tokens of every window, [count, K] int64, windows and tokens in raster order."""
        return self.split(torch.arange(tokens_on(self.grid), device=device)[None])[0]

    def token_at(self, window: Tensor, place: Tensor) -> Tensor:
        """Return the token at a place (0 to K - 1, raster order) of a window; the arguments broadcast.

        Arithmetic instead of a look-up in `tokens`, so that a compiler can fuse it.
        """
        token: Tensor | None = None
        stride, last = 1, len(self.grid) - 1
        for axis in range(last, -1, -1):
            count, edge = self.counts[axis], self.edges[axis]
            number = window.remainder(count) if axis else window
            if edge > 1:
                number = number * edge + (place.remainder(edge) if axis else place)
            number = number * stride if stride > 1 else number
            token = number if token is None else token + number
            if axis:
                window = _div(window, count)
                place = _div(place, edge) if edge > 1 else place
            stride *= self.grid[axis]
        assert token is not None
        return token

    def leftovers(self, device: torch.device) -> Tensor:
        """Return the tokens that no window holds, [N - count * K] int64, in raster order."""
        numbers = torch.arange(tokens_on(self.grid), device=device)[None]
        return outside_blocks(numbers, self.grid, self.covered)[0]

    def nearby_row(self, row: Tensor, shift: Tensor) -> Tensor:
        """Return the window row that is `shift` away, or the row itself where that is off the grid.

        Rows are counted through all frames; no row is near one of other frames.
        """
        # Not clamp: inductor (torch 2.13) fails on index arithmetic with a maximum in it.
        other = row + shift
        if self.layers == 1:
            return torch.where((other >= 0) & (other < self.rows), other, row)
        inside = row.remainder(self.rows) + shift
        return torch.where((inside >= 0) & (inside < self.rows), other, row)


def _div(number: Tensor, by: int) -> Tensor:
    return number.div(by, rounding_mode="floor")
