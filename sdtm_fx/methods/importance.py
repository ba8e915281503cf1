"""Importance-based token merging: what guidance changes most is kept (IBTM, ICCV 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sdtm_fx.errors import PlanError
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.hashing import combine, hash_words
from sdtm_fx.methods.base import Method, OptionError, TokenView
from sdtm_fx.methods.matching import best_match, nearest_on_grid, plan_best
from sdtm_fx.plan import MergePlan

Share = Annotated[float, Field(gt=0, lt=1, strict=True)]
Factor = Annotated[float, Field(ge=1, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Importance(Method):
    """Important tokens absorb, unimportant ones go first.

    The importance of a token is the channel mean of ``|eps_text - eps_uncond|`` at its place in the step before.
    The pool are the ``M = (N - r) * pool`` most important tokens. A part of all tokens, drawn at random from the
    pool, absorbs. Every other token finds its best match among these, and the `remove` that go are first those
    outside the pool, then those whose match is best.

    The first step has no step before it, so it has to be dense. Guidance has to run both halves in one batch: a
    pipeline that cannot is refused when it is rewritten. Whether one that can does is decided at each call, and where
    it does not, the first step that merges is an error. The draw comes from a hash of the salt and the token. Slots
    are in raster order of the tokens that represent them.

    Formula:
        I = mean |eps_text - eps_uncond| over channels, in the step before; the (N - r) · pool tokens of largest I are
        the pool, `destinations` · N of them absorb, and those outside the pool go first.

    Use:
        With guidance by two halves in one batch (SDXL, SD3), where the prompt names small things.

    Attributes:
        destinations: Part of all tokens that absorbs, 0.25 as published.
        pool: Size of the pool over that of what is kept: 1 as published for DiT, 1.4 for Stable Diffusion.
        metric: What a match is judged by: "cosine" between tokens, or nearness on the "grid" (the published form
            for PixArt, in which no token is compared). Equal distances are told apart by hash.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"importance"})

    name: Literal["importance"] = "importance"
    destinations: Share = 0.25
    pool: Factor = 1.0
    metric: Literal["cosine", "grid"] = "cosine"

    def _check_options(self) -> None:
        if not 0 < self.destinations < 1:
            raise OptionError(
                f"importance: found destinations {self.destinations:g}; accepted above 0, below 1"
            )
        if self.pool < 1:
            raise OptionError(f"importance: found pool {self.pool:g}; accepted 1 or more")

    def capacity(self, grid: TokenGrid) -> int:
        """Return the number of tokens that do not absorb."""
        return tokens_on(grid) - self._absorbing(tokens_on(grid))

    def _absorbing(self, tokens: int) -> int:
        return max(1, int(tokens * self.destinations))

    def _plan(self, view: TokenView, remove: int) -> MergePlan:
        if view.importance is None:
            raise PlanError(
                "importance: found no importance; accepted [batch, tokens], what guidance changed in the step before"
            )
        tokens, device = view.metric.shape[1], view.metric.device
        ranked = torch.argsort(view.importance.float(), dim=1, descending=True, stable=True)
        inside = min(int((tokens - remove) * self.pool), tokens)
        place = torch.empty_like(ranked).scatter_(
            1, ranked, torch.arange(tokens, device=device).expand_as(ranked)
        )
        words = hash_words(torch.arange(tokens, device=device), view.salt)
        pool = ranked[:, :inside]
        drawn = torch.argsort(words[pool], dim=1, stable=True)[:, : self._absorbing(tokens)]
        targets = pool.gather(1, drawn)
        sources = self._others(targets, tokens, view.salt)
        score, partner = self._match(view, sources, targets)
        # By score first; the stable sort of `plan_best` then puts those outside the pool in front.
        order = torch.argsort(score, dim=1, descending=True, stable=True)
        outside = (place.gather(1, sources) >= inside).float()
        return plan_best(
            sources.gather(1, order), partner.gather(1, order), outside.gather(1, order), remove, tokens
        )

    def _others(self, targets: Tensor, tokens: int, salt: int | Tensor) -> Tensor:
        """All tokens but the targets: in raster order, or where places tie by the dozen in one drawn by hash."""
        absorbs = torch.zeros(targets.shape[0], tokens, dtype=torch.uint8, device=targets.device)
        others = torch.argsort(absorbs.scatter_(1, targets, 1), dim=1, stable=True)
        others = others[:, : tokens - targets.shape[1]]
        if self.metric == "cosine":
            return others
        words = hash_words(torch.arange(tokens, device=targets.device), combine(salt, 1))
        return others.gather(1, torch.argsort(words[others], dim=1, stable=True))

    def _match(self, view: TokenView, sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self.metric == "cosine":
            return best_match(view.metric, sources, targets)
        distance, partner = nearest_on_grid(view.grid, sources, targets)
        return -distance, partner
