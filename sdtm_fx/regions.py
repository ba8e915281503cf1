"""Regions of a token grid that are merged each on its own: the whole grid, tiles, or stripes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Regions:
    """Equal blocks, side by side from the top-left corner of a layout of the tokens.

    Tokens beyond the last whole block are in no region. All sizes are static, and no table is kept: features
    are brought region by region, and back, by reshaping, which for the whole grid and for stripes moves nothing.

    Attributes:
        layout: Rows and columns that the tokens are laid out in; their product is N.
        block: Height and width of a region in that layout.
        count: Number of regions down and across.
    """

    layout: tuple[int, int]
    block: tuple[int, int]
    count: tuple[int, int]

    @property
    def number(self) -> int:
        """R, the number of regions."""
        return self.count[0] * self.count[1]

    @property
    def size(self) -> int:
        """K, the number of tokens in a region."""
        return self.block[0] * self.block[1]

    @property
    def tokens(self) -> int:
        """N, the number of tokens, those in no region among them."""
        return self.layout[0] * self.layout[1]

    @property
    def outside(self) -> int:
        """Number of tokens in no region."""
        return self.tokens - self.number * self.size

    @property
    def covered(self) -> tuple[int, int]:
        """Rows and columns of the part of the layout that the regions cover."""
        return self.count[0] * self.block[0], self.count[1] * self.block[1]

    def joined(self) -> Regions:
        """Return one region of all that these cover."""
        return replace(self, block=self.covered, count=(1, 1))

    def split(self, values: Tensor) -> Tensor:
        """Bring values region by region: [B, N, ...] to [B, R, K, ...], both in raster order."""
        (tall, wide), (down, across), (height, width) = self.covered, self.count, self.block
        blocks = values.unflatten(1, self.layout)[:, :tall, :wide]
        blocks = blocks.unflatten(2, (across, width)).unflatten(1, (down, height)).transpose(2, 3)
        return blocks.reshape(values.shape[0], self.number, self.size, *values.shape[2:])

    def rest(self, values: Tensor) -> Tensor:
        """Return the values of the tokens in no region: [B, N, ...] to [B, L, ...]."""
        tall, wide = self.covered
        grid = values.unflatten(1, self.layout)
        return torch.cat([grid[:, :tall, wide:].flatten(1, 2), grid[:, tall:].flatten(1, 2)], dim=1)

    def join(self, inside: Tensor, rest: Tensor) -> Tensor:
        """Bring values back to raster order: the inverse of `split` and `rest`.

        Args:
            inside: [B, R, K, ...].
            rest: [B, L, ...].

        Returns:
            [B, N, ...].
        """
        (tall, wide), (down, across), (height, width) = self.covered, self.count, self.block
        beside = tall * (self.layout[1] - wide)
        grid = inside.unflatten(2, (height, width)).unflatten(1, (down, across)).transpose(2, 3)
        grid = grid.reshape(inside.shape[0], tall, wide, *inside.shape[3:])
        if not self.outside:
            return grid.flatten(1, 2)
        right = rest[:, :beside].unflatten(1, (tall, self.layout[1] - wide))
        return torch.cat([torch.cat([grid, right], dim=2).flatten(1, 2), rest[:, beside:]], dim=1)

    def numbers(self, device: torch.device) -> Tensor:
        """Return the tokens of every region, [R, K] int64."""
        return self.split(torch.arange(self.tokens, device=device)[None])[0]


def whole_grid(grid: tuple[int, int]) -> Regions:
    """Return one region of all tokens of a grid."""
    return Regions(grid, grid, (1, 1))


def tiles(grid: tuple[int, int], tile: tuple[int, int]) -> Regions:
    """Return tiles of a height and width; rows and columns that fill no tile are in no region."""
    return Regions(grid, tile, (grid[0] // tile[0], grid[1] // tile[1]))


def stripes(grid: tuple[int, int], number: int) -> Regions:
    """Return `number` equal runs of the raster, which are whole rows where it divides the height of the grid.

    Fewer than `number` tokens at the end are in no region; on a grid of fewer tokens all of them are.
    """
    tokens = grid[0] * grid[1]
    length = tokens // number
    return Regions((1, tokens), (1, length), (1, number if length else 0))
