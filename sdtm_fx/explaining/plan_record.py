"""What `record_plans` returns: what every site did in every recorded call of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sdtm_fx.grids import TokenGrid, tokens_on

Action = Literal["merged", "keys", "forecast", "refresh", "dense"]
"""``merged``: computed on fewer tokens. ``keys``: computed in full, with attention to fewer image keys. ``forecast``:
not computed, all of it forecast. ``refresh``: computed in full and stored for later forecasts. ``dense``: computed in
full."""


@dataclass(frozen=True)
class SiteRecord:
    """One site in one call of the model.

    Attributes:
        generation: Counts generations from the start of the recording.
        step: Denoising step.
        steps: Number of denoising steps.
        call: Counts the calls of the model in this step: guidance that runs its halves apart makes two.
        context: Name of diffusers' cache context (``cond``, ``uncond``), where the pipeline sets one.
        block: Module path of the block.
        site: Id of the site in the recipe.
        kind: ``attention`` or ``feed_forward``.
        path: Module path of the site.
        action: What the site did.
        stage: Name of the stage whose graph the block ran, None on dense steps.
        grid: (height, width) of the image in tokens, behind the frames of a video; protected frames are left out.
        kept: Image tokens that the site computed: all N of them, M after merging, none where all is forecast. Where
            keys alone were merged, how many of them were left.
        assign: [B, N] int32 on the CPU, the slot of every image token, where there was a plan; else None. Under
            a plan that mixes slots (`toma`) it is the slot that a token gives most to. B is the batch of the call;
            where guidance stacks both halves, diffusers puts the negative one first.
        positions: [B, M] int32 on the CPU, the token whose position each slot has; None where `assign` is.
        cached: Whether tokens at no slot's position were not computed and took a stored value (`token_cache`); `assign`
            then says nothing about them.
    """

    generation: int
    step: int
    steps: int
    call: int
    context: str | None
    block: str
    site: str
    kind: str
    path: str
    action: Action
    stage: str | None
    grid: TokenGrid
    kept: int
    assign: Tensor | None = field(default=None, repr=False)
    positions: Tensor | None = field(default=None, repr=False)
    cached: bool = False

    @property
    def tokens(self) -> int:
        """N, the number of image tokens."""
        return tokens_on(self.grid)

    @property
    def sizes(self) -> Tensor | None:
        """[B, M] int64, the number of tokens in each slot; None where nothing was merged."""
        if self.assign is None:
            return None
        counts = torch.zeros(self.assign.shape[0], self.kept, dtype=torch.int64)
        return counts.scatter_add_(1, self.assign.long(), torch.ones_like(self.assign, dtype=torch.int64))

    @property
    def merged_mask(self) -> Tensor | None:
        """[B, N] bool, the tokens that share their slot with others, or were not computed; None without a plan."""
        sizes = self.sizes
        if sizes is None or self.assign is None or self.positions is None:
            return None
        if self.cached:
            return torch.ones_like(self.assign, dtype=torch.bool).scatter_(1, self.positions.long(), False)
        return (sizes > 1).gather(1, self.assign.long())


class PlanRecord:
    """Everything that was recorded, in the order in which it ran. Iterates over `SiteRecord`.

    Attributes:
        sites: Every site of every block that ran, of every call of the model.
    """

    def __init__(self) -> None:
        self._sites: list[SiteRecord] = []

    @property
    def sites(self) -> tuple[SiteRecord, ...]:
        """Every site of every block that ran, of every call of the model."""
        return tuple(self._sites)

    def at(
        self,
        *,
        generation: int | None = None,
        step: int | None = None,
        block: str | None = None,
        kind: str | None = None,
        site: str | None = None,
        action: Action | None = None,
    ) -> tuple[SiteRecord, ...]:
        """The sites that agree with all that is given.

        Args:
            generation: Which of the recorded generations, from 0.
            step: Denoising step.
            block: Module path of a block.
            kind: ``attention`` or ``feed_forward``.
            site: Id of a site in the recipe.
            action: What the site did.
        """
        wanted = {
            "generation": generation, "step": step, "block": block, "kind": kind, "site": site, "action": action,
        }  # fmt: skip
        asked = {name: value for name, value in wanted.items() if value is not None}
        return tuple(s for s in self._sites if all(getattr(s, k) == v for k, v in asked.items()))

    def add(self, sites: list[SiteRecord]) -> None:
        """Append the sites of one call."""
        self._sites.extend(sites)

    def clear(self) -> None:
        """Forget what was recorded so far, for instance between two images."""
        self._sites.clear()

    def __len__(self) -> int:
        return len(self._sites)

    def __iter__(self) -> Iterator[SiteRecord]:
        return iter(self._sites)
