"""Skip: compute nothing at a site and forecast all of it (ratio 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sdtm_fx.errors import PlanError
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.methods.base import Method, TokenView
from sdtm_fx.plan import MergePlan


@dataclass(frozen=True, kw_only=True)
class Skip(Method):
    """Removes every token, so there is no plan: the whole output comes from earlier dense steps.

    Formula:
        y = y₁ (`reuse.order: 0`), or y₁ + (t - t₁) / (t₁ - t₂) · (y₁ - y₂) (`reuse.order: 1`), with y₁ and y₂ the
        outputs at the last dense steps t₁ and t₂: of a site, or what all blocks of a span add to the image tokens.
        Where every site of every block is forecast, both are the same but for rounding, and a span holds one feature.

    Use:
        With many steps; together with merging in the other stage, or alone, as a cache that compiles.
    """

    merges: ClassVar[bool] = False

    name: Literal["skip"] = "skip"

    def capacity(self, grid: TokenGrid) -> int:
        """Return the number of tokens: all of them go."""
        return tokens_on(grid)

    def plan(self, view: TokenView, remove: int) -> MergePlan:
        """Raise PlanError: a skipped site is not merged."""
        raise PlanError("skip: found a request for a merge plan; a skipped site is forecast and has no plan")

    def _plan(self, view: TokenView, remove: int) -> MergePlan:
        return self.plan(view, remove)
