"""How the parts of merging grow with the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sdtm_fx.bench.parts import PartTimes

LINEAR = 1.2
"""The largest exponent that is called linear: caches that overflow add a little, a table of all pairs adds one."""


@dataclass(frozen=True)
class Growth:
    """Time of plan, merge and unmerge together against the tokens of one stage.

    Attributes:
        stage: Name of the stage.
        tokens: Image tokens, ascending.
        seconds: Time of the three parts at each.
        exponent: The a of the power law ``seconds = c * tokens ** a`` that fits best, by least squares of the
            logarithms.
        factor: Its c.
    """

    stage: str
    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    exponent: float
    factor: float

    @property
    def is_linear(self) -> bool:
        """Whether time grows no faster than tokens do, up to `LINEAR`."""
        return self.exponent <= LINEAR


def growth_of(times: Sequence[PartTimes]) -> tuple[Growth, ...]:
    """Fit a power law to every stage that was timed at two sizes or more.

    Args:
        times: Timings of the parts, of any stages and sizes.
    """
    found = []
    for stage in dict.fromkeys(time.stage for time in times):
        own = {t.tokens: t.seconds for t in sorted(times, key=lambda t: t.tokens) if t.stage == stage}
        if len(own) < 2:
            continue
        exponent, factor = np.polyfit(np.log([*own]), np.log([*own.values()]), 1)
        found.append(Growth(stage, tuple(own), tuple(own.values()), float(exponent), float(np.exp(factor))))
    return tuple(found)
