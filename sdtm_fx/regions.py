"""Regions of a token grid that are merged each on its own: the whole grid, tiles, or stripes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdtm_fx.grids import TokenGrid, join_blocks, outside_blocks, split_blocks, tokens_on
from sdtm_fx.windows import Windows


@dataclass(frozen=True)
class Regions:
    """Equal blocks, side by side from the first corner of a layout of the tokens.

    Tokens beyond the last whole block are in no region. All sizes are static, and no table is kept: features
    are brought region by region, and back, by reshaping, which for the whole grid and for stripes moves nothing.

    Attributes:
        layout: Sides of what the tokens are laid out in, such as rows and columns; their product is N.
        block: Sides of a region in that layout.
        count: Number of regions along each side.
    """

    layout: TokenGrid
    block: TokenGrid
    count: TokenGrid

    @property
    def number(self) -> int:
        """R, the number of regions."""
        return math.prod(self.count)

    @property
    def size(self) -> int:
        """K, the number of tokens in a region."""
        return math.prod(self.block)

    @property
    def tokens(self) -> int:
        """N, the number of tokens, those in no region among them."""
        return tokens_on(self.layout)

    @property
    def outside(self) -> int:
        """Number of tokens in no region."""
        return self.tokens - self.number * self.size

    @property
    def covered(self) -> TokenGrid:
        """Sides of the part of the layout that the regions cover."""
        return tuple(count * edge for count, edge in zip(self.count, self.block, strict=True))

    def joined(self) -> Regions:
        """Return one region of all that these cover."""
        return replace(self, block=self.covered, count=(1,) * len(self.layout))

    def split(self, values: Tensor) -> Tensor:
        """Bring values region by region: [B, N, ...] to [B, R, K, ...], both in raster order."""
        return split_blocks(values, self.layout, self.block, self.count)

    def rest(self, values: Tensor) -> Tensor:
        """Return the values of the tokens in no region: [B, N, ...] to [B, L, ...]."""
        return outside_blocks(values, self.layout, self.covered)

    def join(self, inside: Tensor, rest: Tensor) -> Tensor:
        """Bring values back to raster order: the inverse of `split` and `rest`.

        Args:
            inside: [B, R, K, ...].
            rest: [B, L, ...].

        Returns:
            [B, N, ...].
        """
        return join_blocks(inside, rest, self.layout, self.block, self.count)

    def numbers(self, device: torch.device) -> Tensor:
        """Return the tokens of every region, [R, K] int64."""
        return self.split(torch.arange(self.tokens, device=device)[None])[0]


def whole_grid(grid: TokenGrid) -> Regions:
    """Return one region of all tokens of a grid."""
    return Regions(grid, grid, (1,) * len(grid))


def tiles(grid: TokenGrid, tile: TokenGrid) -> Regions:
    """Return tiles of a height and width, within one frame unless they have frames of their own.

    Rows, columns and frames that fill no tile are in no region.
    """
    windows = Windows(grid, tile)
    return Regions(grid, windows.edges, windows.counts)


def stripes(grid: TokenGrid, number: int) -> Regions:
    """Return `number` equal runs of the raster, which are whole rows where it divides the height of the grid.

    Fewer than `number` tokens at the end are in no region; on a grid of fewer tokens all of them are. On a grid with
    frames, every frame has so many stripes.
    """
    frames, tokens = math.prod(grid[:-2]), math.prod(grid[-2:])
    length = tokens // number
    return Regions((frames, tokens), (1, length), (frames, number if length else 0))
