"""ToMe for diffusion: one absorbing token per cell, drawn at random (ToMeSD, Bolya and Hoffman 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdtm_fx.methods.cells import CellMatching


@dataclass(frozen=True, kw_only=True)
class ToMe(CellMatching):
    """One token per cell absorbs; of all others, the most similar to any absorbing token are merged.

    Tokens outside whole cells may be merged but absorb nothing, as in ToMeSD. The draw comes from a hash
    of the salt and the cell, so it is the same for the whole batch and repeats with the seed. Slots are in
    raster order of the tokens that represent them.

    Formula:
        Token x goes to the absorbing token t of largest cos(x, t) among all cells; the tokens of largest cos(x, t)
        go.

    Use:
        To compare with ToMeSD. `local_match` looks at fewer pairs. Inside of spans, where slots have no grid, with
        window [1, 2]: every other slot absorbs, as in ToMe for classifiers (Bolya et al. 2023).

    Attributes:
        window: Height and width of a cell, in tokens.
        random: Draw the absorbing token; otherwise it is the top-left one.
    """

    name: Literal["tome"] = "tome"
