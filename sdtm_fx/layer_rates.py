"""How many tokens a block removes in a phase, on which grid, and what it makes of a slot, where blocks differ."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from sdtm_fx.errors import ScheduleError
from sdtm_fx.grids import TokenGrid, coarser, show_grid, tokens_on
from sdtm_fx.levels import lattice, multiples
from sdtm_fx.methods.base import Method
from sdtm_fx.reductions import Reduce

_SLACK = 1 / 8  # of the wanted count, by which a coarse lattice may miss it


@dataclass(frozen=True)
class LayerRates:
    """What a recipe says of each rewritten block by itself, by its number.

    Attributes:
        scales: Part of the phase's count that a block removes, where it is not all of it.
        reduces: What a block makes of a slot, where a rule says so.
        round_to: Kept counts are multiples of this where that comes near enough.
        levels: Side of a block's tokens over that of the grid's, where it is not 1: the levels of a U-Net.
    """

    scales: Mapping[int, float] = field(default_factory=dict)
    reduces: Mapping[int, Reduce] = field(default_factory=dict)
    round_to: int = 1
    levels: Mapping[int, int] = field(default_factory=dict)

    def grid(self, block: int, grid: TokenGrid) -> TokenGrid:
        """(height, width) in tokens of a block; `grid` is that of the call."""
        return coarser(grid, self.levels.get(block, 1))

    def remove(self, block: int, remove: int, method: Method, grid: TokenGrid) -> int:
        """How many tokens a block removes at each site in a phase.

        Args:
            block: Number of the block.
            remove: Tokens that the phase removes of the grid of the call.
            method: Of the stage.
            grid: (height, width) in tokens of the call.

        Raises:
            ScheduleError: The method cannot remove as large a part of a coarser grid.
        """
        if block not in self.scales and block not in self.levels:
            return remove
        own = self.grid(block, grid)
        tokens = own[0] * own[1]
        if not method.merges:
            return tokens if remove else 0
        scale = self.scales.get(block, 1.0)
        most = remove if own == grid else _part_of(remove, method, grid, own)
        if scale == 1 and own != grid and remove == method.capacity(grid):
            return most  # all that can be: multiples of `round_to` are what comes out
        wanted = scale * remove * tokens / tokens_on(grid)
        return scaled_count(most, wanted / most, tokens, method.quantum(), self.round_to) if most else 0

    def removes(self, remove: int, method: Method, grid: TokenGrid) -> dict[int, int]:
        """The same of all blocks that do not remove what the phase does."""
        return {block: self.remove(block, remove, method, grid) for block in {**self.scales, **self.levels}}


def _part_of(remove: int, method: Method, grid: TokenGrid, own: TokenGrid) -> int:
    """The most that may go of a coarser grid: all that can, where at least that is asked for."""
    tokens, whole, most = tokens_on(own), tokens_on(grid), method.capacity(own)
    if remove * tokens > most * whole and remove != method.capacity(grid):
        raise ScheduleError(
            f"{method.name}: found ratio {remove / whole:.4g} at a level of {show_grid(own)} tokens (grid "
            f"{show_grid(grid)}); it can remove at most {most} of {tokens} there (ratio {most / tokens:.4g})"
        )
    return most // method.quantum() * method.quantum()


@functools.lru_cache(maxsize=4096)
def scaled_count(remove: int, scale: float, tokens: int, quantum: int, round_to: int) -> int:
    """Return the count nearest to a part of a count, on the lattice of what can be removed.

    What is kept is a multiple of `round_to`, or of the first lower power of two whose lattice comes within an
    eighth of what is wanted. On equal distance the smaller count is taken.

    Args:
        remove: Tokens that the phase removes.
        scale: The part, 0 to 1.
        tokens: N.
        quantum: Removed counts are multiples of this.
        round_to: Kept counts are multiples of this, where possible.
    """
    wanted, best = scale * remove, 0
    for multiple in multiples(round_to):
        allowed = (0, *lattice(tokens, remove, quantum, multiple))
        best = min(allowed, key=lambda count: (abs(count - wanted), count))
        if abs(best - wanted) <= _SLACK * wanted:
            break
    return best
