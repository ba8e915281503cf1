"""How many tokens a block removes in a phase, and what it makes of a slot, where blocks differ."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from sdtm_fx.levels import lattice, multiples
from sdtm_fx.methods.base import Method
from sdtm_fx.reductions import Reduce

_SLACK = 1 / 8  # of the wanted count, by which a coarse lattice may miss it


@dataclass(frozen=True)
class LayerRates:
    """What the `layers` of a recipe say of each rewritten block, by its number.

    Attributes:
        scales: Part of the phase's count that a block removes, where it is not all of it.
        reduces: What a block makes of a slot, where a rule says so.
        round_to: Kept counts are multiples of this where that comes near enough.
    """

    scales: Mapping[int, float] = field(default_factory=dict)
    reduces: Mapping[int, Reduce] = field(default_factory=dict)
    round_to: int = 1

    def remove(self, block: int, remove: int, method: Method, tokens: int) -> int:
        """How many tokens a block removes at each site in a phase.

        Args:
            block: Number of the block.
            remove: Tokens that the phase removes.
            method: Of the stage.
            tokens: N.
        """
        if block not in self.scales or not method.merges:
            return remove
        return scaled_count(remove, self.scales[block], tokens, method.quantum(), self.round_to)

    def removes(self, remove: int, method: Method, tokens: int) -> dict[int, int]:
        """The same of all blocks that do not remove what the phase does."""
        return {block: self.remove(block, remove, method, tokens) for block in self.scales}


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
