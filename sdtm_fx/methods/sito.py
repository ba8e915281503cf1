"""SiTo: prune what is most similar to a base token, copy from what is most similar of the rest (AAAI 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.hashing import hash_words
from sdtm_fx.methods.base import Method, TokenView, Weight, WindowSize, check_window, row_of_cells
from sdtm_fx.methods.matching import best_match, plan_best, split_windows
from sdtm_fx.plan import MergePlan
from sdtm_fx.similarity import inverse_norms, without_autocast
from sdtm_fx.windows import Windows

_HALF = 1 << 23  # 24 bits are what float32 holds exactly


@dataclass(frozen=True, kw_only=True)
class SiTo(Method):
    """Similarity-based pruning: one base token per cell, pruned tokens copied from their most similar keeper.

    The base of a cell is its token with the largest ``sim_beta * sum_j cos(x_i, x_j) + noise_alpha * noise``, the
    sum over all tokens of the sample. Of the tokens that are no base, the `remove` most similar to any base go.
    Each gets its output back from the most similar of all tokens that stayed, base or not, and a slot holds
    the value of the token that stayed: nothing is averaged. Tokens that fill no cell may go, but are no base.

    The noise is there to break ties. It is drawn by hash, the same for the whole batch, uniform with the variance
    of the published normal distribution. Slots are in raster order of the tokens that represent them.

    Formula:
        Base of a cell: argmax of sim_beta · Σⱼ cos(xᵢ, xⱼ) + noise_alpha · noise. The tokens of largest cosine to a
        base go, and get back what the kept token of largest cosine got.

    Use:
        In place of `tome` where averages blur: slots hold one token each. Two searches instead of one.

    Attributes:
        window: Height and width of a cell, in tokens.
        sim_beta: Weight of the similarity to all tokens.
        noise_alpha: Weight of the noise.
    """

    name: Literal["sito"] = "sito"
    window: WindowSize = (2, 2)
    sim_beta: Weight = 1.0
    noise_alpha: Weight = 0.1

    def _check_options(self) -> None:
        check_window(self.window, self.name)

    def capacity(self, grid: TokenGrid) -> int:
        """Return the number of tokens that are no base; nothing goes on a grid without a whole cell."""
        cells = Windows(grid, self.window).count
        return tokens_on(grid) - cells if cells else 0

    def needs_grid(self) -> str | None:
        """Return None for cells within a row, which may be any row of tokens."""
        return row_of_cells(self.window)

    def score(self, view: TokenView) -> Tensor:
        """Return what makes a token the base of its cell, [B, N] float32: the largest of a cell is it.

        Costs N·D: the cosines of a token with all others sum to its product with the sum of all unit tokens.
        """
        x = view.metric.float()
        unit = x * inverse_norms(x)[..., None]
        with without_autocast(x.device):
            alike = (unit @ unit.sum(dim=1)[..., None])[..., 0]
        words = hash_words(torch.arange(x.shape[1], device=x.device), view.salt)
        noise = ((words >> 8) - _HALF).float() * (3**0.5 / _HALF)
        return self.sim_beta * alike + self.noise_alpha * noise

    def _plan(self, view: TokenView, remove: int) -> MergePlan:
        windows, tokens = Windows(view.grid, self.window), view.metric.shape[1]
        bases, others = split_windows(windows, windows.split(self.score(view)).argmax(dim=2))
        batch = bases.shape[0]
        sources = torch.cat([others, windows.leftovers(bases.device).expand(batch, -1)], dim=1)
        cosine, _ = best_match(view.metric, sources, bases)
        gone = sources.gather(1, torch.argsort(cosine, dim=1, descending=True, stable=True)[:, :remove])
        # Raster order on both sides, so that equal cosines go to the keeper that comes first.
        stays = torch.ones(batch, tokens, dtype=torch.uint8, device=bases.device).scatter(1, gone, 0)
        ranked = torch.argsort(stays, dim=1, stable=True)
        pruned, keepers = ranked[:, :remove], ranked[:, remove:]
        cosine, partner = best_match(view.metric, pruned, keepers)
        return plan_best(pruned, partner, cosine, remove, tokens).reduced_by("prune")
