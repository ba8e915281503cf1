"""Token grids: two sides, or three where there are frames; and blocks of a grid that lie side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

TokenGrid: TypeAlias = tuple[int, ...]
"""(height, width) in tokens, or (frames, height, width) where the model is one of videos. Tokens are in raster order:
frame by frame, row by row."""


def tokens_on(grid: TokenGrid) -> int:
    """Return how many tokens a grid holds."""
    return math.prod(grid)


def show_grid(grid: Sequence[int]) -> str:
    """Write a grid, or a window: ``64x64``, ``21x30x52``."""
    return "x".join(map(str, grid))


def coarser(grid: TokenGrid, downsample: int) -> TokenGrid:
    """Return the grid of tokens whose sides are `downsample` times as long, rounded up; frames stay."""
    *frames, height, width = grid
    return (*frames, -(-height // downsample), -(-width // downsample))


def split_blocks(values: Tensor, grid: TokenGrid, block: TokenGrid, count: TokenGrid) -> Tensor:
    """Lay values out block by block: [B, N, ...] to [B, blocks, K, ...], both in raster order.

    Args:
        values: One per token.
        grid: Sides of the grid.
        block: Sides of a block, as many.
        count: How many blocks there are along each side, from the first corner on.
    """
    axes = len(grid)
    blocks = values.unflatten(1, grid)
    for axis in reversed(range(axes)):
        blocks = blocks.narrow(axis + 1, 0, count[axis] * block[axis])
        blocks = blocks.unflatten(axis + 1, (count[axis], block[axis]))
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), *range(2 * axes + 1, blocks.ndim)]
    return blocks.permute(order).reshape(
        values.shape[0], math.prod(count), math.prod(block), *values.shape[2:]
    )


def outside_blocks(values: Tensor, grid: TokenGrid, covered: TokenGrid) -> Tensor:
    """Return the values of the tokens that no block covers: [B, N, ...] to [B, L, ...], in raster order."""
    return _outside(values.unflatten(1, grid), len(grid), covered)


def _outside(values: Tensor, axes: int, covered: TokenGrid) -> Tensor:
    head = covered[0]
    beyond = values[:, head:].flatten(1, axes)
    if axes == 1:
        return beyond
    inside = _outside(values[:, :head].flatten(0, 1), axes - 1, covered[1:])
    return torch.cat(
        [inside.unflatten(0, (-1, head)).flatten(1, 2) if head else beyond[:, :0], beyond], dim=1
    )


def join_blocks(inside: Tensor, rest: Tensor, grid: TokenGrid, block: TokenGrid, count: TokenGrid) -> Tensor:
    """Bring values back to raster order: the inverse of `split_blocks` and `outside_blocks`.

    Args:
        inside: [B, blocks, K, ...].
        rest: [B, L, ...].
        grid: Sides of the grid.
        block: Sides of a block.
        count: How many blocks there are along each side.

    Returns:
        [B, N, ...].
    """
    axes = len(grid)
    covered = tuple(n * edge for n, edge in zip(count, block, strict=True))
    box = inside.unflatten(2, block).unflatten(1, count)
    order = [0, *(axis + 1 + half * axes for axis in range(axes) for half in range(2))]
    box = box.permute([*order, *range(2 * axes + 1, box.ndim)])
    box = box.reshape(inside.shape[0], *covered, *inside.shape[3:])
    return _join(box, rest, grid, covered)


def _join(box: Tensor, rest: Tensor, grid: TokenGrid, covered: TokenGrid) -> Tensor:
    """[L, *covered, ...] and what is left of every grid, to [L, N, ...]."""
    if grid == covered:
        return box.flatten(1, len(grid))
    if len(grid) == 1:
        return torch.cat([box, rest], dim=1)
    head, beside = covered[0], math.prod(grid[1:]) - math.prod(covered[1:])
    if not head:
        return rest
    inner = rest[:, : head * beside].unflatten(1, (head, beside)).flatten(0, 1)
    whole = _join(box.flatten(0, 1), inner, grid[1:], covered[1:])
    return torch.cat([whole.unflatten(0, (-1, head)).flatten(1, 2), rest[:, head * beside :]], dim=1)
