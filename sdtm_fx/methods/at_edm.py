"""AT-EDM: keep the tokens that attention ranks highest, and copy the others from whom they attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sdtm_fx.attention_score import AttentionHeads, combine_heads, cross_rank, most_attended, page_rank
from sdtm_fx.errors import PlanError
from sdtm_fx.grids import TokenGrid, tokens_on
from sdtm_fx.methods.base import Count, Method, OptionError, TokenView, Weight
from sdtm_fx.methods.matching import best_match
from sdtm_fx.plan import MergePlan, plan_from_parents

Rank = Literal["self", "entropy", "hard_clip", "soft_clip", "power"]


@dataclass(frozen=True, kw_only=True)
class AtEdm(Method):
    """Attention-driven pruning: generalised weighted page rank, and similarity-based copy (Wang et al. 2024).

    The `remove` tokens of least importance are pruned. A slot keeps the value of the token that stays (nothing is
    averaged), and when the slots are spread out again, a pruned token gets the current value of the kept token that
    it attended to most when it was pruned, heads averaged. Slots are in raster order of the tokens that stay.

    Importance is the page rank s <- Aᵀ s of self-attention among image tokens, or comes from the attention to text
    (`rank` other than "self", for joint attention), see `sdtm_fx.attention_score`. Heads are combined by the
    root mean square, without those whose scores vary too little or too much.

    The paper prunes behind the feed-forward of a group's first block and fills up at the end of the group: a span with
    ``enter: end``. At a site, the plan comes from the dense attention of the same block.

    The sources leave open, and this is what was taken: the band is that of Zero-TPrune, the ancestor; among text and
    image only image tokens walk; and the number of iterations, which is "until converged" there, is fixed. On the maps
    of the SD3 toy at 32 x 32 tokens (4 steps, 6 blocks, one caption), 10 iterations are 5.7 % of the importance away
    from 100, in the mean over maps and heads (1 iteration: 15.3 %, 20: 3.3 %; at most 36 %). Of 10 iterations, 256
    probes move 6.0 % of the importance, 128 probes 12.7 %; of the half that is kept, 91 % and 86 % stay the same.

    Formula:
        s ← Aᵀ s from s = 1 / N, `iterations` times, A the softmax over image keys; the tokens of least
        sqrt(mean over heads of s²) go, and get back what the kept token of largest A got.

    Use:
        To compare with AT-EDM: in a span with ``enter: end`` whose stage follows a stage of dense or mild early steps.

    Attributes:
        rank: What importance comes from: "self" for self-attention; "entropy", "hard_clip", "soft_clip" or "power" for
            attention to text.
        iterations: How often importance is passed on.
        band: Least and largest variance of a head's scores, relative to their mean; heads outside do not count.
        similarity: What a pruned token is copied from: the kept token that it attends to most ("attention") or whose
            cosine to it is largest ("cosine", cheaper with few heads).
        probe_queries: How many image queries estimate the importance, None for all of them.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"heads", "text"})

    name: Literal["at_edm"] = "at_edm"
    rank: Rank = "self"
    iterations: Count = 10
    band: tuple[Weight, Weight] = (0.01, 0.7)
    similarity: Literal["attention", "cosine"] = "attention"
    probe_queries: Count | None = 256

    def _check_options(self) -> None:
        if len(self.band) != 2 or self.band[0] > self.band[1]:
            raise OptionError(f"at_edm: found band {self.band}; accepted (least, largest) variance")

    def capacity(self, grid: TokenGrid) -> int:
        """Return all tokens but one."""
        return max(tokens_on(grid) - 1, 0)

    def wants(self) -> frozenset[str]:
        """Return "heads", and "text" where importance comes from the attention to text."""
        return frozenset({"heads"}) if self.rank == "self" else self.needs

    def score(self, view: TokenView) -> Tensor:
        """Return the importance of every token, [B, N] float32; the largest stay.

        Raises:
            PlanError: The view holds no queries and keys, or none of text where they are asked for.
        """
        heads = self._heads(view)
        if self.rank == "self":
            scores = page_rank(
                heads.query,
                heads.key,
                iterations=self.iterations,
                probes=self.probe_queries,
                scale=heads.scale,
            )
        else:
            if heads.text_key is None:
                raise PlanError(
                    f"at_edm: found no text keys for rank {self.rank!r}; accepted joint attention "
                    "over text and image, or rank 'self'"
                )
            scores = cross_rank(
                heads.query,
                heads.text_key,
                score=self.rank,
                iterations=self.iterations,
                probes=self.probe_queries,
                scale=heads.scale,
            )
        return combine_heads(scores, self.band)

    def _heads(self, view: TokenView) -> AttentionHeads:
        if view.heads is None:
            raise PlanError(
                "at_edm: found no queries and keys; accepted those of the image tokens, as `heads`"
            )
        return view.heads

    def _plan(self, view: TokenView, remove: int) -> MergePlan:
        tokens = view.metric.shape[1]
        ranked = torch.argsort(self.score(view), dim=1, descending=True, stable=True)
        kept = tokens - remove
        # Raster order on both sides, so that equal similarities go to the keeper that comes first.
        keepers, sources = ranked[:, :kept].sort(dim=1).values, ranked[:, kept:].sort(dim=1).values
        if self.similarity == "attention":
            partner = most_attended(self._heads(view), sources, keepers)
        else:
            partner = best_match(view.metric, sources, keepers)[1]
        own = torch.arange(tokens, device=ranked.device).repeat(ranked.shape[0], 1)
        return plan_from_parents(own.scatter_(1, sources, partner), kept).reduced_by("prune")
